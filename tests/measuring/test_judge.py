"""The judge, against an endpoint that the tests start: what it is sent, and what it may answer."""

import base64
import http.server
import io
import json
import threading

import numpy as np
import pandas as pd
import pytest
import urllib3
from PIL import Image

from vdp_utils.errors import VDPError
from vdp_utils.measuring import judge as judging
from vdp_utils.measuring.judge import OVERALL, SCORES, Judge, judge_replies, scores
from vdp_utils.measuring.multi_turn import DialogueCondition
from vdp_utils.measuring.store import ResultStore
from vdp_utils.sources.mmdu import synthetic

FULL = dict(zip(SCORES, range(2, 9)))


@pytest.fixture
def endpoint(monkeypatch):
    """A local server; `answers` are (status, body or text of the reply, headers, seconds)."""
    monkeypatch.setattr(urllib3.util.Retry, "get_backoff_time", lambda self: 0)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.heard.append((self.path, dict(self.headers), body))
            answer = server.answers.pop(0) if server.answers else server.always
            status, given, headers, seconds = (*answer, *(200, "", {}, 0)[len(answer):])
            if seconds:
                server.pause.wait(seconds)
            if isinstance(given, str):
                given = {"choices": [{"message": {"content": given}, "finish_reason": "stop"}]}
            data = json.dumps(given).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": len(data)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):  # a client that has stopped waiting
            pass

    server = Server(("127.0.0.1", 0), Handler)
    server.heard, server.answers, server.always = [], [], (200, f"Good. {FULL}")
    server.pause = threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.pause.set()
    server.shutdown()
    server.server_close()


def test_the_question_goes_out_with_images_and_key(endpoint, monkeypatch):
    monkeypatch.setenv("VDP_JUDGE_KEY", "secret")
    found = Judge(endpoint.url, "judge-1").ask("How good?", [Image.new("RGB", (8, 6), "red")])
    ((path, headers, body),) = endpoint.heard
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body["model"] == "judge-1"
    text, picture = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "How good?"}
    data = picture["image_url"]["url"].partition("base64,")[2]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (8, 6)
    assert found == dict(status="scored", comment=f"Good. {FULL}") | FULL


@pytest.mark.parametrize("text, expected", [
    (f"First: {{not a dict}}. So: {json.dumps(FULL)} Done.", FULL),
    (f"```python\n{FULL}\n```", FULL),  # single quotes
    (str({OVERALL: 3}) + " or rather " + str({OVERALL: 4}), {OVERALL: 4}),
    ("{'overall_score': '7/10', 'creativity': 6.5, 'Richness': null}",
     {OVERALL: 7, "Creativity": 6.5}),
    ("{'Overall': 5}", {OVERALL: 5}),
    ("{'Overall Score': 0, 'Richness': 11, 'Creativity': None}", {}),
    ("{'Overall Score': high}", {}), ("I give 8 of 10.", {}), ("{8, 9}", {}), ("", {})])
def test_scores_are_found_in_a_judge_s_words(text, expected):
    assert scores(text) == expected


def test_what_lacks_a_dimension_counts_and_what_lacks_the_overall_does_not(endpoint):
    some, rest = dict(FULL), {name: FULL[name] for name in SCORES[:-1]}
    del some["Richness"]
    endpoint.answers = [(200, str(some)), (200, str(rest)), (200, "No comment."),
                        (200, {"choices": [{"message": {"refusal": "I will not."}}]}),
                        (200, {"choices": [{"message": {"content": str(FULL)},
                                            "finish_reason": "content_filter"}]}),
                        (400, {"error": "too long"})]
    one = Judge(endpoint.url, "m")
    found = [one.ask("?") for _ in range(6)]
    assert [row["status"] for row in found] == [
        "scored", "no overall", "no scores", "refused", "refused", "refused"]
    assert found[0][OVERALL] == 8 and np.isnan(found[0]["Richness"])
    assert np.isnan(found[1][OVERALL]) and found[1]["Creativity"] == 2
    assert found[3]["comment"] == "I will not." and "too long" in found[5]["comment"]


def test_busy_endpoints_are_asked_again_and_given_up_at_last(endpoint):
    one = Judge(endpoint.url, "m", seconds=0.3, tries=2)
    endpoint.answers = [(429, "", {"Retry-After": 0}), (503, "")]
    assert one.ask("?")["status"] == "scored" and len(endpoint.heard) == 3
    for answer, status in (((429, "", {"Retry-After": 0}), "rate limited"), ((502, ""), "failed"),
                           ((200, str(FULL), {}, 5), "timed out")):
        endpoint.heard.clear()
        endpoint.answers = [answer] * 3
        assert one.ask("?")["status"] == status and len(endpoint.heard) == 3
    endpoint.answers = [(200, str(FULL), {}, 5)]
    assert one.ask("?")["status"] == "scored"


@pytest.mark.parametrize("answer, message", [
    ((401, {"error": "no key"}), "answers 401.*VDP_JUDGE_KEY"), ((404, {}), "answers 404"),
    ((200, {"hello": 1}), "answers 200"), ((200, {"choices": []}), "answers 200")])
def test_an_endpoint_that_refuses_every_question_stops_the_run(endpoint, answer, message):
    endpoint.answers = [answer]
    with pytest.raises(VDPError, match=message):
        Judge(endpoint.url, "m").ask("?")


def test_a_url_where_nobody_listens_is_named(endpoint):
    with pytest.raises(VDPError, match="127.0.0.1:9/v1 cannot be reached"):
        Judge("http://127.0.0.1:9/v1", "m", tries=0).ask("?")


@pytest.fixture
def replies(tmp_path):
    """A store with the rows of two dialogues, their condition, and the dialogues."""
    found, store = [synthetic("evaluation", n, 2) for n in range(2)], ResultStore(tmp_path)
    one = DialogueCondition("m", "r", "float32", "sdpa", "same_image", 0, rate=0.5)
    rows = [dict(key=f"{d.image_id}/{n}", image_id=d.image_id, question_id=str(n), rate=0.5,
                 question=q.text, reference=q.answer, reply="No.",
                 f1=np.nan if (d, n) == (found[1], 1) else 0.5)
            for d in found for n, q in enumerate(d.questions[:3])]
    store.append("test", one, rows)
    return store, one, found


def test_a_judged_run_goes_on_where_it_was(endpoint, replies):
    store, one, found = replies
    judge = Judge(endpoint.url, "m", tries=0)
    endpoint.answers = [(200, str(FULL)), (429, ""), (404, {})]
    with pytest.raises(VDPError, match="answers 404"):
        judge_replies(judge, found, [one], store, "test")
    endpoint.heard.clear()
    endpoint.answers = [(200, "No."), (503, "")]
    table = judge_replies(judge, found, [one], store, "test")
    assert len(endpoint.heard) == 4  # the first was stored, and one reply was not asked for
    assert sorted(table["status"]) == ["failed", "no scores", "scored", "scored", "scored"]
    assert set(table["rate"]) == {0.5} and table["image_id"].nunique() == 2
    endpoint.heard.clear()
    again = judge_replies(judge, found, [one], store, "test")
    assert len(endpoint.heard) == 1 and (again["status"] == "scored").sum() == 4
    (_, _, body), = endpoint.heard
    text, *pictures = body["messages"][0]["content"]
    (name, number), = table.loc[table["status"] == "failed", "key"].str.split("/")
    (question,) = [d.questions[int(number)] for d in found if d.image_id == name]
    assert all(part in text["text"] for part in
               (*SCORES, question.text, question.answer, "No."))
    assert len(pictures) == 2
    endpoint.heard.clear()
    judge_replies(Judge(endpoint.url, "m", images=False), found, [one], store, "test")
    assert len(endpoint.heard) == 5  # another way of asking is another judge
    assert all(len(body["messages"][0]["content"]) == 1 for _, _, body in endpoint.heard)


def test_nothing_is_sent_without_a_url(replies, monkeypatch):
    store, one, found = replies
    monkeypatch.setattr(judging.requests, "Session", None)
    table = judge_replies(Judge("", "m"), found, [one], store, "test")
    assert isinstance(table, pd.DataFrame) and table.empty and "status" in table
