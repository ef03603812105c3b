"""`vdp sources`: what the files of photographs, questions and talk under a folder hold."""

from collections import Counter

import numpy as np

from vdp_utils.commands.probe import aligned
from vdp_utils.errors import VDPError
from vdp_utils.lvlm.load import load_tokenizer
from vdp_utils.sources.dialogues import as_text
from vdp_utils.sources.photographs import KEPT, READERS, Source, open_source

KINDS = ("presence", "position", "relation", "counting", "own")  # of questions with options
COUNTED = 200  # photographs whose talk is put into tokens; the rest is reckoned from their mean


def sources(data: str, root, model: str = "embedded-s"):
    """Print two tables: what there is, and what was left out and why. Tokens are the model's."""
    if data == "scenes":
        raise VDPError(f"scenes lie in no folder: choose one of {', '.join(READERS)}")
    source, tokenizer = open_source(data, root), load_tokenizer(model)
    found = Counter(source.found.values())
    lines = [["what", "number"], *([f"records: {name}", n] for name, n in source.records.items()),
             ["photographs found", found[True]], ["photographs missing", found[False]],
             [f"photographs kept (at most {KEPT})", len(source.photos)]]
    lines += [[f"questions in the files: {kind}", n] for kind, n in sorted(Counter(
        q.kind for photo in source.photos for q in photo.questions).items())]
    lines += [[f"photographs with a context: {kind}", n] for kind, n in sorted(Counter(
        kind for photo in source.photos for kind in photo.contexts).items())]
    lines += [[f"photographs to ask: {kind}", asked(source, kind)] for kind in KINDS]
    own, other = tokens(source.photos, tokenizer), "without end, of scenes"
    if source.others:
        talk = source.others.talk
        other = f"about {tokens(talk, tokenizer) * len(talk):.0f}"
    lines += [[f"tokens of talk about one photograph, mean ({model})", f"{own:.0f}"],
              [f"tokens of talk about other images ({model})", other]]
    print(aligned([[name, str(n)] for name, n in lines]))
    left = [[reason, str(n), part.first[reason]]
            for part in filter(None, dict.fromkeys([source, source.others]))
            for reason, n in part.skipped.most_common()]
    print("", aligned([["left out", "number", "first"], *left]) if left else "Nothing left out.",
          sep="\n")


def asked(source: Source, kind: str) -> int:
    """How many photographs can be asked questions of a kind."""
    found = 0
    for photo in source.photos:
        try:
            found += bool((source.presence(photo) if kind == "presence" else
                           source.questions(photo, kind)).questions)
        except VDPError:  # it shows every noun there is
            continue
    return found


def tokens(photos, tokenizer) -> float:
    """Mean tokens of all that was said of a photograph, over the first COUNTED."""
    rng = np.random.default_rng(0)
    texts = [as_text(photo.dialogue(rng, len(photo.turns))) for photo in photos[:COUNTED]]
    ids = tokenizer(texts, add_special_tokens=False).input_ids if texts else []
    return sum(map(len, ids)) / max(1, len(ids))
