"""Where pictures, questions and dialogues come from."""
