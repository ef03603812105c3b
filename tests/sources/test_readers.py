"""Readers of released files: every oddity known of them, and broken files."""

import json

import albums
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vdp_utils.errors import VDPError
from vdp_utils.sources.photographs import open_source

READERS = {"coco": albums.coco, "visual-genome": albums.genome, "svit": albums.svit,
           "pope": albums.pope, "table": albums.table}


def counted(source):
    """What was left out; nothing is malformed but by a test's own doing."""
    return dict(source.skipped)


def turns_of(source):
    return {photo.image_id: [text for _, text in photo.turns] for photo in source.photos}


# ---- COCO


@pytest.mark.parametrize("split, names", [("val2017", "{:012d}.jpg"),
                                          ("val2014", "COCO_val2014_{:012d}.jpg")])
def test_coco_of_either_year(tmp_path, split, names):
    albums.coco(tmp_path, split, names=names)
    source = open_source("coco", tmp_path)
    assert counted(source) == {} and set(source.kept) == {str(n) for n in albums.SHOWN}
    for number, some in albums.SHOWN.items():
        photo = source.kept[str(number)]
        boxes = {(noun, (x, y, x + w, y + h)) for noun, (x, y, w, h) in some}
        assert boxes <= {(item.noun, item.box) for item in photo.items}
        assert [text for _, text in photo.turns] == [
            text.strip() for text in albums.SAID[number]]
    boxes = sum(map(len, albums.SHOWN.values()))
    assert source.records[f"instances_{split}.json annotations"] == boxes + 1  # a crowd's


def test_coco_without_a_split_s_folder_leaves_its_files_out(tmp_path):
    albums.coco(tmp_path)
    albums.coco(tmp_path, "train2017", files=False)
    source = open_source("coco", tmp_path)
    assert counted(source) == {"file whose folder of photographs is not there": 2}
    assert not any("train" in name for name in source.records)


def test_coco_s_odd_annotations_are_counted(tmp_path):
    instances, _ = albums.coco(tmp_path)
    first = instances["annotations"][0]
    instances["annotations"] += [
        first, first | dict(image_id=99), first | dict(bbox=[500, 0, 3, 3]),
        first | dict(bbox=[70, 50, 30, 30]), first | dict(bbox=["1", "2", "3", "4"]),
        first | dict(bbox=[1, 2]), first | dict(bbox=None), first | dict(category_id=5),
        first | dict(image_id=None), {}, "x", None]
    instances["images"] += [dict(id="0007", file_name="7.jpg", width=9, height=9),
                            dict(id=8, file_name="../8.jpg", width=9, height=9),
                            dict(id=9, file_name="9.jpg", width=0, height=9),
                            dict(id=10, file_name="\u0000.jpg", width=9, height=9)]
    albums.write(tmp_path / "annotations/instances_val2017.json", instances)
    (tmp_path / "val2017/7.jpg").touch()
    albums.photograph(tmp_path.parent / "8.jpg")
    source = open_source("coco", tmp_path)
    assert counted(source) == {
        "repeated box": 1, "record of an image that is not listed": 1,
        "box that is empty or outside its image": 1, "malformed record": 8,
        "image of no bytes": 1, "image that is missing": 1, "path that leaves the data root": 1}
    assert source.first["malformed record"].startswith("instances_val2017.json, images.item 9 (Val")
    surfer = source.kept["1"]
    assert {(70, 50, 80, 60), (1, 2, 4, 6)} <= {item.box for item in surfer.items}
    assert source.found["7"] is False and "7" not in source.kept


# ---- Visual Genome


@pytest.mark.parametrize("version", ["1.2", "1.4"])
def test_visual_genome_in_both_folders(tmp_path, version):
    albums.genome(tmp_path, version)
    source = open_source("visual-genome", tmp_path)
    assert counted(source) == {}
    for number, photo in source.kept.items():
        assert photo.path.parent.name == ("VG_100K_2" if int(number) % 2 else "VG_100K")
        assert set(photo.counts) == {noun for noun, _ in albums.SHOWN[int(number)]}


def test_visual_genome_s_oddities(tmp_path):
    images, objects = albums.genome(tmp_path)
    images[0]["id"] = images[0].pop("image_id")
    images[1] |= dict(url="http://elsewhere/1.jpg", image_id="2")
    del images[2]["url"]
    box = dict(x=-904, y=-3, w=950, h=20)
    objects[0]["objects"] += [
        box | dict(names=["Surfboards "]), box | dict(names=["Surfboards "]), box | dict(names=[]),
        box | dict(name="boat"), box | dict(names=["bird", "gull"]), box | dict(names=["#7"]),
        dict(x=0, y=0, w=0, h=5, names=["bird"]), dict(names=["bird"])]
    objects.append(dict(image_id=99, objects=[]))
    albums.write(tmp_path / "image_data.json", images)
    albums.write(tmp_path / "objects.json", objects)
    source = open_source("visual-genome", tmp_path)
    assert len(source.photos) == 6 and counted(source) == {
        "repeated box": 1, "malformed record": 3, "box that is empty or outside its image": 1,
        "record of an image that is not listed": 1}
    surfer = source.kept["1"]
    assert "surfboard" not in {n for n, c in surfer.counts.items() if c == 2}  # a number unknown
    assert "surfboards" not in surfer.counts and surfer.counts["boat"] == 1
    assert max(item.box[2] for item in surfer.items if item.noun == "boat") == 46


# ---- SVIT


@pytest.mark.parametrize("form", ["svit.json", "conversation.json", "SVIT_core_150K.json",
                                  "SVIT_mix_665K.json"])
def test_svit_in_every_form(tmp_path, form):
    albums.genome(tmp_path)
    albums.svit(tmp_path, form)
    source = open_source("svit", tmp_path)
    assert counted(source) == ({"dialogue without an image": 1} if "SVIT" in form else {})
    assert turns_of(source) == {f"svit-{n}": [text.strip() for text in said]
                                for n, said in albums.SAID.items()}
    assert {question for photo in source.photos for question, _ in photo.turns} == {
        "What can you say of it?"}  # no <image>
    assert source.presence_samples("evaluation", 3, 1)  # of Visual Genome's objects


def test_svit_is_read_once_though_its_parts_lie_beside_it(tmp_path):
    albums.genome(tmp_path)
    for form in ("svit.json", "conversation.json", "SVIT_core_150K.json"):
        albums.svit(tmp_path, form)
    source = open_source("svit", tmp_path)
    assert counted(source) == {"file beside svit.json": 2}


def test_svit_s_odd_turns_are_counted(tmp_path):
    albums.genome(tmp_path)
    records = albums.svit(tmp_path)
    user, gpt = albums.turns(["It is calm."])
    records += [
        dict(image_id="1", conversations=[dict(content=[
            user, gpt | dict(value="message is empty")])]),
        dict(image_id=1, conversations=[dict(content=[user, gpt | dict(value=" ")])]),
        dict(image_id=1, conversations=[dict(content=[gpt, user, user, gpt])]),
        dict(image_id=1, conversations=[dict(content=[user, gpt])]),
        dict(image_id=1, conversations=[dict(content=[
            user, gpt | dict(value="<st>the sea<ed> [0.1, 0.2, 0.3, 0.4]")])]),
        dict(image_id=1, conversations=[dict(content=[
            user, gpt | dict(value="It is</s> [INST] <|im_end|> deep.\nAnd blue.")])]),
        dict(image_id=1, conversations=[dict(content=[user, gpt | dict(value=3)])]),
        dict(image_id=1, conversations=[dict(content=[user | {"from": "system"}, gpt])]),
        dict(image_id=1, conversations=5), dict(image_id=1), "hello", None]
    albums.write(tmp_path / "svit.json", records)
    source = open_source("svit", tmp_path)
    assert counted(source) == {
        "empty turn": 2, "dialogue in which not every turn is answered": 1, "repeated turn": 1,
        "turn with boxes as text": 1, "malformed record": 5, "dialogue without an image": 1}
    assert [text for _, text in source.kept["1"].turns][2:] == ["It is calm.",
                                                                "It is deep. And blue."]


# ---- POPE


def with_photographs(root, folder="val2014", names="COCO_val2014_{:012d}.jpg"):
    for n in albums.SHOWN:
        albums.photograph(root / folder / names.format(n), n)


@pytest.mark.parametrize("folder, names", [
    ("val2014", "COCO_val2014_{:012d}.jpg"), ("train2017", "{:012d}.jpg")])
def test_pope_s_settings_are_joined_on_image_and_text(tmp_path, folder, names):
    with_photographs(tmp_path, folder, names)
    random = albums.pope(tmp_path)
    popular = albums.pope(tmp_path, "popular", first=0, nos=("kite", "vase"))
    source = open_source("pope", tmp_path)
    assert source.records == {"coco_pope_random.json": len(random),
                              "coco_pope_popular.json": len(popular)}
    assert counted(source) == {"repeated question": len(random) // 2}  # the same yes-questions
    for setting, absent in (("random", {"skis", "oven"}), ("popular", {"kite", "vase"})):
        (sample, *_) = samples = open_source(f"pope-{setting}", tmp_path).presence_samples(
            "evaluation", 9)
        assert len(samples) == len(albums.SHOWN)
        for sample in samples:
            assert {n for n, there in sample.asked.items() if not there} <= absent
            answers = [q.answer for q in sample.questions]
            assert answers.count("Yes") == answers.count("No") > 0
            assert all(q.text == f"Is there {'an' if q.nouns[0][0] in 'aeiou' else 'a'} "
                       f"{q.nouns[0]} in the image?" for q in sample.questions)


def test_pope_with_coco_has_boxes_and_talk(tmp_path):
    albums.coco(tmp_path, "val2014", names="COCO_val2014_{:012d}.jpg")
    albums.pope(tmp_path)
    source = open_source("pope", tmp_path)
    assert counted(source) == {}
    assert source.kept["4"].share("car") == pytest.approx(800 / 4800)
    assert source.kept["3"].turns and "oven" in source.kept["2"].counts


def test_pope_s_old_and_other_forms(tmp_path):
    with_photographs(tmp_path)
    records = albums.pope(tmp_path)
    odd = [record | dict(image_id=5, text=record["text"].replace("image", "imange"))
           for record in records]
    odd += [records[0] | dict(label="no"), records[0] | dict(label="maybe"),
            {"question": "?"}, records[0] | dict(image="COCO_val2014_000000000077.jpg")]
    albums.write(tmp_path / "gqa_pope_seem_random.json", "\n [" + json.dumps(odd)[1:])
    source = open_source("pope", tmp_path)
    assert counted(source) == {"repeated question": len(records), "malformed record": 2,
                               "second answer to a question": 1, "image that is missing": 1}


# ---- one's own table


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("given", ["file", "folder"])
def test_a_table(tmp_path, form, given):
    path = albums.table(tmp_path, form)
    source = open_source("table", path if given == "file" else tmp_path)
    assert counted(source) == {} and len(source.photos) == 3
    (bus,) = [s for s in source.question_samples("evaluation", 9, "own") if s.questions[0].nouns]
    (question,) = bus.questions
    assert (question.answer, question.options) == ("Red", ("Red", "blue", "green"))
    assert bus.asked == {"bus": True} and bus.image().mode == "RGB"
    said = bus.picture.dialogue(np.random.default_rng(0), 9, ["bus"])["conversations"]
    assert [turn["value"] for turn in said] == ["Who waits?", "Some people."]
    presence = source.presence_samples("evaluation", 9)
    answers = {s.image_id: sorted(q.answer for q in s.questions) for s in presence}
    assert answers == {"table-a.jpg": ["No", "Yes"], "table-c.jpg": ["Yes"]}
    assert turns_of(source)["table-c.jpg"] == ["The street is wet.", "A man holds an umbrella."]
    assert {s.image().size for s in presence} == {(80, 60)}  # a.jpg is stored turned


def test_a_table_s_odd_rows_are_counted(tmp_path):
    path = albums.table(tmp_path)
    with open(path, "a") as file:
        file.write("a.jpg,What?,a dog\na.jpg,What?,x,a|b\na.jpg,What?,a,a|a\n,Is it?,yes\n"
                   "../a.jpg,Is it?,yes\n/etc/hostname,Is it?,yes\na.jpg\nb.jpg,,yes\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    source = open_source("table", path)
    assert counted(source) == {
        "question with neither options nor a yes-no answer": 1, "malformed record": 3,
        "answer that is none of its options": 2, "path that leaves the data root": 2}


@pytest.mark.parametrize("content, says", [
    (b"", "lacks the columns answer, image, question"),
    (b"image,question\n", "lacks the columns answer: name them so"),
    (b"image,question,answer\na.jpg,x,\xff\n", "row 1: no CSV in UTF-8"),
    (b"image,question,answer\n", "table in .* has no usable photograph: none"),
    (b"image,question,answer\nx.jpg,Is it?,yes\n", "no usable photograph: 1 x image that is miss"),
])
def test_a_broken_table_is_named(tmp_path, content, says):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(VDPError, match=says):
        open_source("table", path)
    (tmp_path / "t.parquet").write_bytes(b"PAR1" + content)
    with pytest.raises(VDPError, match="t.parquet: no parquet file, or a broken one"):
        open_source("table", tmp_path / "t.parquet")
    with pytest.raises(VDPError, match="holds 2 tables"):
        open_source("table", tmp_path)


# ---- broken files


def prepare(name, root):
    """A reader's files with photographs, and without what it can do without."""
    READERS[name](root)
    with_photographs(root)
    with_photographs(root, "VG_100K", "{}.jpg")


@pytest.mark.parametrize("name", ["coco", "visual-genome", "svit", "pope"])
@pytest.mark.parametrize("change, says", [
    (lambda b: b"", "records should stand here as JSON in UTF-8"),
    (lambda b: b[:-9], r" \d+: not whole, or no JSON in UTF-8"),
    (lambda b: b"\xff\xfe" + b, "records should stand here as JSON in UTF-8"),
    (lambda b: b.replace(b" ", b"\xff", 1), r"item 1: not whole, or no JSON in UTF-8"),
    (lambda b: b'"text"', "records should stand here as JSON in UTF-8"),
    (lambda b: b[:-1] + b"[" * 5000, "more than 1000 levels deep"),
    (lambda b: b"{}" if b[:1] == b"{" and b[:13] != b'{"question_id' else b"[]", "there is no "),
])
def test_a_broken_file_is_named(tmp_path, name, change, says):
    prepare(name, tmp_path)
    path = tmp_path / {"coco": "annotations/captions_val2017.json", "svit": "svit.json",
                       "visual-genome": "image_data.json", "pope": "coco_pope_random.json"}[name]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(VDPError, match=f"{path.name}.*{says}"):
        open_source(name, tmp_path)


@pytest.mark.parametrize("name", ["coco", "visual-genome", "svit", "pope", "table"])
def test_a_byte_order_mark_changes_nothing(tmp_path, name):
    prepare(name, tmp_path)
    digest = open_source(name, tmp_path).digest
    for path in [*tmp_path.glob("*.json"), *tmp_path.glob("*/*.json"), *tmp_path.glob("*.csv")]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert open_source(name, tmp_path).digest == digest


PLAIN = (st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=5)
         | st.sampled_from(["val2017/x", "../x", "<image>", "yes", [], {}, [{}], [[]], [None]]))
ODD = PLAIN | st.lists(PLAIN, max_size=4) | st.dictionaries(
    st.sampled_from(["image", "from", "value", "content", "names", "x"]), PLAIN, max_size=3)


def places(value, path=()):
    """Where something stands in nested lists and objects."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(
        value, list) else ()
    yield path
    for key, one in inner:
        yield from places(one, (*path, key))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """{reader: (folder, file to break, its bytes)}."""
    found = {}
    for name in READERS:
        root = tmp_path_factory.mktemp(name)
        prepare(name, root)
        path = root / {"coco": "annotations/instances_val2017.json", "svit": "svit.json",
                       "visual-genome": "objects.json", "pope": "coco_pope_random.json",
                       "table": "questions.csv"}[name]
        found[name] = root, path, path.read_bytes()
    return found


def use(name, root):
    """Read it and make samples and a dialogue of it: nothing but a VDPError may come of it."""
    try:
        source = open_source(name, root)
        for sample in source.presence_samples("evaluation", 9, 1):
            sample.picture.other(np.random.default_rng(0))
            [sample.picture.share(noun) for noun in sample.asked]
            sample.image("swapped")
    except VDPError as error:
        assert len(str(error)) > 20


FUZZED = settings(derandomize=True, deadline=None, max_examples=40,
                  suppress_health_check=list(HealthCheck))


def with_other_bytes(whole, data, name):
    root, path, content = whole[name]
    at = data.draw(st.integers(0, len(content)))
    cut = data.draw(st.integers(0, 30))
    path.write_bytes(content[:at] + data.draw(st.binary(max_size=9)) + content[at + cut:])
    try:
        use(name, root)
    finally:
        path.write_bytes(content)


def with_other_values(whole, data, name):
    root, path, content = whole[name]
    lines = name == "pope"
    value = [json.loads(line) for line in content.splitlines()] if lines else json.loads(content)
    *above, key = data.draw(st.sampled_from([p for p in places(value) if p]))
    inner = value
    for one in above:
        inner = inner[one]
    inner[key] = data.draw(ODD)
    path.write_text("\n".join(map(json.dumps, value)) if lines else json.dumps(value))
    try:
        use(name, root)
    finally:
        path.write_bytes(content)


@FUZZED
@given(data=st.data(), name=st.sampled_from(list(READERS)))
def test_any_bytes_are_read_or_refused(whole, data, name):
    with_other_bytes(whole, data, name)


@FUZZED
@given(data=st.data(), name=st.sampled_from([name for name in READERS if name != "table"]))
def test_any_values_are_read_or_refused(whole, data, name):
    with_other_values(whole, data, name)


@pytest.mark.weekly
@pytest.mark.parametrize("name", READERS)
def test_ten_thousand_broken_files_are_read_or_refused(whole, name):
    @settings(FUZZED, max_examples=10_000)
    @given(data=st.data(), bytewise=st.booleans())
    def check(data, bytewise):
        change = with_other_bytes if bytewise or name == "table" else with_other_values
        change(whole, data, name)

    check()
