"""Tiny random-weight models of every supported architecture, from configs, without a download."""

import copy
import dataclasses

import torch
import transformers as t

from vdp_utils.attention.tokens import Kind

IMAGE, START, END = 90, 91, 92  # token ids: image, vision start, vision end
LAYERS, WIDTH, HEADS, KV_HEADS, WORDS = 4, 32, 4, 2, 100
TEXT = dict(vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=WIDTH // HEADS,
            max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=0,
            tie_word_embeddings=False)
VISION = dict(hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
              image_size=32, patch_size=16)
ROPE3D = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}


def louder(lvlm):
    """A copy with larger weights, so that context and image move the answers visibly."""
    model = copy.deepcopy(lvlm.model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5 if weight.ndim > 1 else 1)
    return dataclasses.replace(lvlm, model=model)


def _square(channels=3, size=32):
    return torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(1))


def llava():
    config = t.LlavaConfig(vision_config=t.CLIPVisionConfig(**VISION),
                           text_config=t.LlamaConfig(**TEXT), image_token_index=IMAGE)
    return t.LlavaForConditionalGeneration(config), dict(pixel_values=_square())


def _tiled(config, model, vision, text):
    """A LLaVA that sees an image whole and in tiles: here one tile."""
    made = config(vision_config=vision(**VISION), text_config=text(**TEXT),
                  image_token_index=IMAGE, image_grid_pinpoints=[[32, 32]])
    return model(made), dict(pixel_values=torch.cat([_square(), _square()])[None],
                             image_sizes=torch.tensor([[32, 32]]))


def llava_next():
    return _tiled(t.LlavaNextConfig, t.LlavaNextForConditionalGeneration, t.CLIPVisionConfig,
                  t.LlamaConfig)


def llava_onevision():
    return _tiled(t.LlavaOnevisionConfig, t.LlavaOnevisionForConditionalGeneration,
                  t.SiglipVisionConfig, t.Qwen2Config)


def instructblip():
    former = t.InstructBlipQFormerConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, encoder_hidden_size=WIDTH)
    config = t.InstructBlipConfig(
        vision_config=t.InstructBlipVisionConfig(**VISION), qformer_config=former,
        text_config=t.LlamaConfig(**TEXT), num_query_tokens=4, image_token_index=IMAGE)
    return t.InstructBlipForConditionalGeneration(config), dict(
        pixel_values=_square(), qformer_input_ids=torch.tensor([[5, 6, 7]]))


def _patches():
    """A 4 x 4 grid of patches, merged 2 x 2 to four image tokens."""
    generator = torch.Generator().manual_seed(1)
    return dict(pixel_values=torch.randn(16, 3 * 2 * 8 * 8, generator=generator),
                image_grid_thw=torch.tensor([[1, 4, 4]]))


def _qwen(config, model, **vision):
    """A Qwen-VL: 3-D rotary positions, patches merged by its tower."""
    tower = dict(depth=2, hidden_size=WIDTH, num_heads=2, patch_size=8, temporal_patch_size=2,
                 spatial_merge_size=2)
    made = config(text_config=dict(TEXT, rope_parameters=ROPE3D), vision_config=tower | vision,
                  image_token_id=IMAGE, vision_start_token_id=START, vision_end_token_id=END)
    return model(made), _patches()


def qwen2_vl():
    return _qwen(t.Qwen2VLConfig, t.Qwen2VLForConditionalGeneration, embed_dim=WIDTH, mlp_ratio=2)


def qwen2_5_vl():
    return _qwen(t.Qwen2_5_VLConfig, t.Qwen2_5_VLForConditionalGeneration, out_hidden_size=WIDTH,
                 intermediate_size=64, window_size=32, fullatt_block_indexes=[1])


def qwen3_vl():
    return _qwen(t.Qwen3VLConfig, t.Qwen3VLForConditionalGeneration, out_hidden_size=WIDTH,
                 intermediate_size=64, num_position_embeddings=16,
                 deepstack_visual_indexes=[0, 1])


def idefics3():
    config = t.Idefics3Config(image_token_id=IMAGE, vision_config=VISION, scale_factor=2,
                              text_config=t.LlamaConfig(**TEXT))
    return t.Idefics3ForConditionalGeneration(config), dict(pixel_values=_square()[None])


def smolvlm():
    config = t.SmolVLMConfig(image_token_id=IMAGE, vision_config=VISION, scale_factor=2,
                             text_config=t.LlamaConfig(**TEXT))
    return t.SmolVLMForConditionalGeneration(config), dict(pixel_values=_square()[None])


def internvl():
    vision = dict(VISION, image_size=[32, 32], patch_size=[8, 8])
    config = t.InternVLConfig(vision_config=vision, text_config=t.Qwen2Config(**TEXT),
                              image_token_id=IMAGE)
    return t.InternVLForConditionalGeneration(config), dict(pixel_values=_square())


def gemma3():
    text = dict(TEXT, sliding_window=512, query_pre_attn_scalar=WIDTH // HEADS, layer_types=[
        "sliding_attention", "full_attention"] * (LAYERS // 2))
    config = t.Gemma3Config(text_config=t.Gemma3TextConfig(**text),
                            vision_config=t.SiglipVisionConfig(**VISION),
                            mm_tokens_per_image=4, image_token_index=IMAGE)
    return t.Gemma3ForConditionalGeneration(config), dict(pixel_values=_square())


def paligemma():
    config = t.PaliGemmaConfig(vision_config=t.SiglipVisionConfig(**VISION, projection_dim=WIDTH),
                               text_config=t.GemmaConfig(**TEXT), image_token_index=IMAGE,
                               projection_dim=WIDTH, hidden_size=WIDTH)
    return t.PaliGemmaForConditionalGeneration(config), dict(pixel_values=_square())


def mistral3():
    vision = dict(VISION, head_dim=16)
    config = t.Mistral3Config(vision_config=t.PixtralVisionConfig(**vision),
                              text_config=t.MistralConfig(**TEXT), image_token_index=IMAGE,
                              spatial_merge_size=1, multimodal_projector_bias=False)
    return t.Mistral3ForConditionalGeneration(config), dict(
        pixel_values=_square(), image_sizes=torch.tensor([[32, 32]]))


BUILDERS = {f.__name__: f for f in (
    llava, llava_next, llava_onevision, instructblip, qwen2_vl, qwen2_5_vl, qwen3_vl, idefics3,
    smolvlm, internvl, gemma3, paligemma, mistral3)}
IMAGE_TOKENS = dict(llava_next=10, llava_onevision=10, idefics3=1, smolvlm=1)  # 4 for the others


def build(name: str):
    """A tiny model of an architecture and its image inputs; weights large enough to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images = BUILDERS[name]()
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if weight.ndim > 1 and "vision" not in key:
                    weight.copy_(torch.randn_like(weight) * weight.shape[-1] ** -0.5)
            model.get_output_embeddings().weight[IMAGE:END + 1] = 0  # never generated
    return model.eval(), images


def prompt(name: str, images: dict, context: int = 40, question: int = 6, seed: int = 0):
    """Inputs of batch size 1 and their kinds: template, image, context, question, template."""
    generator = torch.Generator().manual_seed(seed)
    visual = IMAGE_TOKENS.get(name, 4)
    words = torch.randint(3, 80, (context + question,), generator=generator).tolist()
    ids = [1, START, *[IMAGE] * visual, END, *words, 81, 82]
    kinds = ([Kind.TEMPLATE] * 2 + [Kind.IMAGE] * visual + [Kind.TEMPLATE]
             + [Kind.CONTEXT] * context + [Kind.QUESTION] * question + [Kind.TEMPLATE] * 2)
    ids, kinds = torch.tensor([ids]), torch.tensor([[int(k) for k in kinds]])
    inputs = dict(images, input_ids=ids, attention_mask=torch.ones_like(ids))
    if name.startswith("qwen"):
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    if name in ("gemma3", "paligemma"):
        inputs["token_type_ids"] = (ids == IMAGE).long()
    return inputs, kinds
