"""MMDU's scores by a judge: a model behind an OpenAI-compatible endpoint that reads each reply.

As published, a judge gives six dimensions and an Overall from 1 to 10, and what counts is the mean
of its own Overall over all turns, not that of the six. Nothing is sent where no endpoint is named.
"""

import ast
import base64
import io
import os
import re
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ReadTimeoutError
from urllib3.util import Retry

from vdp_utils.errors import VDPError
from vdp_utils.measuring.multi_turn import images_of
from vdp_utils.measuring.store import ResultStore
from vdp_utils.sources.mmdu import Dialogue

OVERALL = "Overall Score"
SCORES = ("Creativity", "Richness", "Visual Perception", "Logical Coherence", "Answer Accuracy",
          "Image Relationship Understanding", OVERALL)
PASSING = ("timed out", "rate limited", "failed")  # asked again by the next run
KEY = "VDP_JUDGE_KEY"  # of the environment, where an endpoint needs one
TASK = (
    "Judge how well an assistant answered one turn of a dialogue about the images. A reference "
    "answer stands beside its answer. Be strict. Give each of these a whole number from 1 "
    f"(useless) over 3 (poor), 5 (fair) and 7 (good) to 10 (perfect): {', '.join(SCORES)}. First "
    "explain in a few sentences. Then end with one Python dict of these names and numbers.\n\n"
    "[Question]\n{}\n\n[Reference answer]\n{}\n\n[Assistant's answer]\n{}\n")


@dataclass(frozen=True)
class Judge:
    """A judge and how it is asked: `url` up to and with /v1, with or without the images."""

    url: str
    model: str
    images: bool = True
    seconds: float = 120.0  # without a word from it
    tries: int = 5

    def ask(self, text: str, images=()) -> dict:
        """The columns status, comment (its words), and SCORES, NaN where not given.

        Time-outs, rate limits and an endpoint's own errors are tried again, as it asks or with
        growing pauses. VDPError where nobody answers, or refuses every question.
        """
        content = [{"type": "text", "text": text}]
        for image in images:
            image.save(file := io.BytesIO(), "PNG")
            data = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
            content.append({"type": "image_url", "image_url": {"url": data}})
        body = dict(model=self.model, max_tokens=4096, temperature=0,
                    messages=[{"role": "user", "content": content}])
        headers = {"Authorization": f"Bearer {os.environ[KEY]}"} if KEY in os.environ else {}
        again = Retry(self.tries, allowed_methods=["POST"], backoff_factor=1, raise_on_status=False,
                      status_forcelist=[408, 429, 500, 502, 503, 504], retry_after_max=300)
        try:
            with requests.Session() as session:
                session.mount(self.url, HTTPAdapter(max_retries=again))
                answer = session.post(self.url.rstrip("/") + "/chat/completions", json=body,
                                      headers=headers, timeout=self.seconds)
        except requests.RequestException as error:
            if isinstance(getattr(error.args[0], "reason", None), ReadTimeoutError):
                return _columns("timed out")
            raise VDPError(f"the judge at {self.url} cannot be reached ({error}): check the URL; "
                           "what it has judged is stored, so run again") from error
        return _read(self.url, answer)


def _read(url: str, answer: requests.Response) -> dict:
    """What an endpoint's answer says."""
    code = answer.status_code
    if code in (400, 408, 429) or code >= 500:  # 400: this question is too long or not allowed
        return _columns({400: "refused", 429: "rate limited"}.get(code, "failed"), answer.text)
    try:
        answer.raise_for_status()
        choice = answer.json()["choices"][0]
        text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
    except (requests.RequestException, ValueError, LookupError, TypeError, AttributeError) as error:
        raise VDPError(f"the judge at {url} answers {code}: {answer.text[:200]!r}: check the URL "
                       f"(it ends with /v1), the model's name and the key in {KEY}") from error
    if refusal or choice.get("finish_reason") == "content_filter":
        return _columns("refused", refusal or text or "")
    found = scores(text or "")
    return _columns("scored" if OVERALL in found else "no overall" if found else "no scores",
                    text or "", found)


def _columns(status: str, comment: str = "", found=()) -> dict:
    return dict(status=status, comment=comment) | dict.fromkeys(SCORES, np.nan) | dict(found)


def scores(text: str) -> dict[str, float]:
    """The SCORES from 1 to 10 in a judge's words: those of its last dict that has any."""
    for part in reversed(re.findall(r"\{[^{}]*\}", text)):
        try:
            given = ast.literal_eval(part.replace("null", "None")).items()
        except (ValueError, SyntaxError, AttributeError):
            continue
        known, found = {_plain(name): name for name in SCORES}, {}
        for name, value in given:
            number = re.match(r"\d+(\.\d+)?", str(value))
            if _plain(name) in known and number and 1 <= float(number[0]) <= 10:
                found[known[_plain(name)]] = float(number[0])
        if found:
            return found
    return {}


def _plain(name) -> str:
    return re.sub("[^a-z]|score", "", str(name).lower())


def judge_replies(judge: Judge, dialogues: list[Dialogue], conditions, store: ResultStore,
                  finding: str) -> pd.DataFrame:
    """What a judge says of the stored replies of `finding`, one row a condition and turn.

    Columns: key, image_id, rate, and those of `Judge.ask`. They are stored as `<finding>_judged`,
    but for those whose status is PASSING, so that a stopped run goes on where it was. Without a
    url no rows, and nothing is sent.
    """
    tables = [pd.DataFrame(columns=["key", "image_id", "rate", "status", *SCORES])]
    for one in conditions if judge.url else ():
        asked, rows, passing = asdict(one) | {"judge": asdict(judge)}, store.read(finding, one), []
        rows = rows[rows["f1"].notna()]  # those that the model was asked for

        def tasks(asked=asked, rows=rows, passing=passing):
            done = store.done(f"{finding}_judged", asked)
            for dialogue in dialogues:
                images = images_of(dialogue) if judge.images else []
                for row in rows[rows["image_id"] == dialogue.image_id].itertuples():
                    found = dict(key=row.key, image_id=row.image_id, rate=row.rate)
                    if row.key not in done:
                        found |= judge.ask(TASK.format(row.question, row.reference, row.reply),
                                           images)
                    if found.get("status") in PASSING:
                        passing.append(found)
                    else:
                        yield [row.key], lambda found=found: [found]

        stored = store.collect(f"{finding}_judged", asked, tasks(), progress=judge.model)
        tables += [table for table in (stored, pd.DataFrame(passing)) if len(table)]
    return pd.concat(tables, ignore_index=True)
