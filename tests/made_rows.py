"""Rows of answers whose truth is built in, for the findings' tests."""

import numpy as np
import pandas as pd
from scipy import special

LENGTHS = (0, 256, 1024, 4096)
DOUBLINGS = {length: np.log2(1 + length) for length in LENGTHS}
PAIR = ("other_images", "misleading")


def asked(images, questions, **more):
    """One row a question: yes and no take turns."""
    return pd.DataFrame(dict(image_id=f"i{image:03d}", question_id=str(number),
                             answer=("yes", "no")[number % 2], **more)
                        for image in range(images) for number in range(questions))


def one_question(probabilities, image_id="i0", question_id="0", answer="yes",
                 kind="other_images", length=0, scale=1.0):
    """Rows of one question from the chance of "yes" under each image."""
    lines = []
    for image, yes in probabilities.items():
        predicted = "yes" if yes > 0.5 else "no"
        lines.append(dict(
            image_id=image_id, question_id=question_id, answer=answer, context_kind=kind,
            context_length=length, image=image, predicted=predicted, correct=predicted == answer,
            log_likelihoods=[np.log(yes * scale), np.log((1 - yes) * scale)],
            margin=(1 if answer == "yes" else -1) * float(special.logit(yes))))
    return lines
