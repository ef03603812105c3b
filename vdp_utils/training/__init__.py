"""The embedded LVLM's recipe: `vdp train --size S --minutes N`.

*Tower*: a CLIP-architecture vision tower learns which noun each patch shows. *Dialogues*:
projector, LoRA and tower learn to answer questions about scenes, in three steps: the projector
points at the nouns' embeddings, the decoder learns the questions on true noun embeddings, then
all three learn together on images.
"""
