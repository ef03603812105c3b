"""Folders as users have them: random-weight LVLMs with real processor settings, photographs.

Answers mean nothing; tokens, kinds, lengths, boxes and positions are those of the real models.
"""

import json
import math

import torch
import transformers as t
from PIL import Image

from vdp_utils.sources import scenes

TEXT = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, tie_word_embeddings=False)
TURN = ("{{% for m in messages %}}{0}{{% for p in m['content'] %}}"
        "{{% if p['type'] == 'image' %}}{1}{{% else %}}{{{{ p['text'] }}}}{{% endif %}}"
        "{{% endfor %}}{2}{{% endfor %}}"
        "{{% if add_generation_prompt %}}{3}{{% endif %}}")
CHATML = "<|im_start|>{{ m['role'] }}\n", "<|im_end|>\n", "<|im_start|>assistant\n"


def _save(folder, config, images, tokenizer, template, processor_class, **more):
    """A model's folder as the hub has them: config, weights, tokenizer, processor's settings."""
    torch.manual_seed(0)
    model = t.AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "visi" not in name and "visual" not in name:
                weight.copy_(torch.randn_like(weight) * weight.shape[-1] ** -0.5)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    for part in (model, images, tokenizer):
        part.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template)
    settings = dict(processor_class=processor_class, **more)
    (folder / "processor_config.json").write_text(json.dumps(settings))
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def _ids(tokenizer, *tokens):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", *tokens]})
    return [tokenizer.convert_tokens_to_ids(token) for token in tokens]


def llava(folder, tokenizer):
    """LLaVA-1.5: the middle square at 336 pixels, 576 tokens."""
    _ids(tokenizer)
    text = t.LlamaConfig(**TEXT, vocab_size=len(tokenizer), max_position_embeddings=4096)
    tower = t.CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                               num_attention_heads=2, image_size=336, patch_size=14)
    config = t.LlavaConfig(vision_config=tower, text_config=text, vision_feature_layer=-2,
                           image_token_index=tokenizer.convert_tokens_to_ids("<image>"))
    images = t.CLIPImageProcessorPil(size={"shortest_edge": 336}, do_center_crop=True,
                                     crop_size={"height": 336, "width": 336})
    _save(folder, config, images, tokenizer, TURN.format("USER: ", "<image>\n", " ", "ASSISTANT:"),
          "LlavaProcessor", patch_size=14, vision_feature_select_strategy="default",
          num_additional_image_tokens=1)


def qwen(folder, tokenizer):
    """Qwen2.5-VL: as many 28-pixel tokens as the picture has, positions in three dimensions."""
    start, end, image, video = _ids(tokenizer, "<|vision_start|>", "<|vision_end|>",
                                    "<|image_pad|>", "<|video_pad|>")
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    config = t.Qwen2_5_VLConfig(
        text_config=dict(TEXT, vocab_size=len(tokenizer), max_position_embeddings=32768,
                         rope_parameters=rope, bos_token_id=None, eos_token_id=None),
        vision_config=dict(depth=2, hidden_size=32, num_heads=2, intermediate_size=64,
                           out_hidden_size=32, patch_size=14, spatial_merge_size=2,
                           temporal_patch_size=2, window_size=112, fullatt_block_indexes=[1]),
        image_token_id=image, video_token_id=video, vision_start_token_id=start,
        vision_end_token_id=end)
    images = t.Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=28 * 28 * 16384)
    head, stop, generation = CHATML
    _save(folder, config, images, tokenizer, TURN.format(
        head, "<|vision_start|><|image_pad|><|vision_end|>", stop, generation),
        "Qwen2_5_VLProcessor")


def smolvlm(folder, tokenizer, edge=2048):
    """SmolVLM: tiles of 512 pixels and the whole picture, 64 tokens each, text between them."""
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    _ids(tokenizer, "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *rows)
    text = dict(TEXT, model_type="llama", vocab_size=len(tokenizer), max_position_embeddings=8192)
    tower = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                 image_size=512, patch_size=16)
    config = t.SmolVLMConfig(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), vision_config=tower,
        scale_factor=4, text_config=text, pad_token_id=tokenizer.pad_token_id)
    images = t.SmolVLMImageProcessorPil(size={"longest_edge": edge}, do_image_splitting=True,
                                        max_image_size={"longest_edge": 512})
    _save(folder, config, images, tokenizer, TURN.format(
        "<|im_start|>User:", "<image>", "<end_of_utterance>\n", "Assistant:"),
        "SmolVLMProcessor", image_seq_len=64)


def qwen_tokens(width, height):
    """Rows and columns of tokens, for pictures within the limits of the processor's pixels."""
    return round(height / 28), round(width / 28)


def smolvlm_tiles(width, height):
    """Rows and columns of tiles: the longer edge as 2048 pixels, the other up to whole tiles."""
    scale = 2048 / max(width, height)
    even = [math.ceil(side * scale / 2) * 2 if side < max(width, height) else 2048
            for side in (height, width)]
    return tuple(math.ceil(side / 512) for side in even)


BUILDERS = {"llava": llava, "qwen": qwen, "smolvlm": smolvlm}
IMAGE_TOKENS = {
    "llava": lambda width, height: 576,
    "qwen": lambda width, height: math.prod(qwen_tokens(width, height)),
    "smolvlm": lambda width, height: (math.prod(smolvlm_tiles(width, height)) + 1) * 64}

FORMS = ("plain", "turned", "grey", "cmyk", "palette", "mirrored")  # of files, in turn
SIZES = ((320, 240), (240, 320), (288, 288))
EXIF = {"turned": 6, "mirrored": 2}  # how to show what is stored
STORED = {"turned": Image.Transpose.ROTATE_90, "mirrored": Image.Transpose.FLIP_LEFT_RIGHT}


def photographs(root, count):
    """Drawn scenes as files in COCO's schema, on white around them; returns what was drawn:
    {id: (size, {noun: [(x, y, width, height)]})} in pixels as shown."""
    images, boxes, captions, drawn, names = [], [], [], {}, sorted(scenes.GLYPHS)
    (root / "val2017").mkdir(parents=True)
    for number in range(1, count + 1):
        scene, form = scenes.compose("evaluation", number), FORMS[number % len(FORMS)]
        size, at = SIZES[number % len(SIZES)], (number * 7 % 80, number * 13 % 80)
        canvas = Image.new("RGB", size, "white")
        canvas.paste(scene.image(), at)
        name = f"{number:012d}.{'png' if form == 'palette' else 'jpg'}"
        options, exif = {}, Image.Exif()
        if form in EXIF:
            exif[0x0112] = EXIF[form]
            canvas, options = canvas.transpose(STORED[form]), {"exif": exif}
        mode = {"grey": "L", "cmyk": "CMYK"}.get(form)
        canvas = canvas.convert(mode) if mode else canvas
        canvas = canvas.quantize(256) if form == "palette" else canvas
        canvas.save(root / "val2017" / name, **options)
        found = {}
        for item in scene.items:
            x0, y0, x1, y1 = item.box
            box = (at[0] + x0, at[1] + y0, x1 - x0, y1 - y0)
            found.setdefault(item.noun, []).append(box)
            boxes.append(dict(id=len(boxes), image_id=number, iscrowd=0, bbox=box, area=1.0,
                              segmentation=[], category_id=names.index(item.noun) + 1))
        drawn[str(number)] = size, found
        images.append(dict(id=number, file_name=name, width=size[0], height=size[1]))
        said = "It is quiet here.", f"Taken on day {number}.", "Nobody is about."
        captions += [dict(id=3 * number + n, image_id=number, caption=text)
                     for n, text in enumerate(said)]
    (root / "annotations").mkdir()
    for name, content in (("instances", dict(images=images, annotations=boxes, categories=[
            dict(id=n + 1, name=noun) for n, noun in enumerate(names)])),
                          ("captions", dict(images=images, annotations=captions))):
        (root / f"annotations/{name}_val2017.json").write_text(json.dumps(content))
    return drawn

