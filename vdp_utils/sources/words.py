"""Words of files: which of them name one thing, and texts fit for a prompt."""

import re
from functools import lru_cache

from vdp_utils.sources.dialogues import plural

# So that no text gives an asked object away by another name.
# Groups of words and phrases (with _) of which each may be said where another is seen. Too many
# only cost a few turns; too few would let a context state the answer.
KIN = [frozenset(word.replace("_", " ") for word in kin.split()) for kin in """
person people man men woman women boy girl child children kid baby toddler lady ladies guy
gentleman gentlemen someone somebody anyone player pedestrian rider skier surfer snowboarder crowd
couple family group_of human adult chef baker worker driver officer he she his her him they;
bicycle bike cyclist biker cycling; motorcycle motorbike bike scooter moped biker motorcyclist;
car automobile vehicle taxi cab sedan suv minivan van traffic parked; truck lorry lorries van
pickup vehicle; bus buses coach vehicle; airplane aeroplane plane aircraft jet airliner; train
locomotive railway railroad subway tram carriage; boat ship canoe kayak sailboat yacht ferry
ferries vessel raft; traffic_light stoplight signal traffic_signal lights; fire_hydrant hydrant
fireplug; stop_sign sign; parking_meter meter; bench benches seat pew; chair seat stool
armchair recliner; couch sofa settee loveseat seat; bed mattress bunk crib cot bedroom bedspread;
dining_table table desk counter tabletop; potted_plant plant houseplant flower fern shrub; bird
pigeon seagull gull duck parrot goose geese chicken hen rooster owl eagle swan; cat kitten kitty
kitties feline; dog puppy puppies pup canine hound; horse pony ponies foal stallion mare; cow
cattle bull calf calves ox oxen steer herd; sheep lamb ram ewe flock; bear cub grizzly polar_bear;
teddy_bear teddy stuffed_animal stuffed_toy plush bear; backpack rucksack knapsack bag pack;
handbag purse bag pocketbook tote; suitcase luggage baggage bag; umbrella parasol; tie necktie
bow_tie bowtie; skis ski skiing skied skier; snowboard snowboarding snowboarder board; surfboard
surfing surfer surf board; skateboard skateboarding skateboarder skating skater skate board;
frisbee disc disk; sports_ball ball baseball football soccer basketball volleyball tennis;
baseball_bat bat batter batting; baseball_glove glove mitt catcher; tennis_racket racket racquet
tennis; kite kiting parasail; wine_glass glass goblet wineglass wine; cup mug glass teacup
coffee tea; bottle flask jar; knife knives blade cutlery silverware utensil; fork cutlery
silverware utensil; spoon ladle cutlery silverware utensil; bowl dish; sandwich burger hamburger
sub panini; hot_dog hotdog sausage frankfurter; orange tangerine clementine citrus; donut
doughnut pastry pastries; cake cupcake dessert pastry pastries; tv television monitor screen;
laptop computer notebook macbook; mouse mice; remote controller wii; keyboard computer;
cell_phone cellphone phone smartphone mobile telephone iphone; oven stove range cooker; microwave
oven; refrigerator fridge freezer; sink basin washbasin faucet; toilet commode urinal lavatory
bathroom restroom; hair_drier hairdryer hair_dryer dryer blow_dryer; toothbrush brush; book
novel magazine bookshelf bookcase; clock watch; scissors shears; vase pot jar; tree trees
forest woods palm; sky skies cloud; grass lawn field; house building home; building skyscraper
tower house; road street highway; shirt t-shirt tee blouse top; hat cap helmet; jacket coat;
shoe sneaker boot
""".split(";")]
SPECIAL = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,12}\]")  # models read these as control tokens


def plain(text: str) -> str:
    """A text in one line, without what a tokenizer could take for a control token."""
    return " ".join(SPECIAL.sub(" ", text).split())


def noun(text: str) -> str:
    """A file's name for an object, in the study's form. ValueError where it is no plain noun."""
    found = " ".join(text.lower().replace("_", " ").split())
    if not re.fullmatch(r"[a-z][a-z '-]{0,39}[a-z]", found):
        raise ValueError(f"no plain noun: {text[:40]!r}")
    return found


def _forms(name: str) -> str:
    words = {name, name.split()[-1], name.removesuffix("s") if len(name) > 3 else name}
    words |= {word for kin in KIN if not kin.isdisjoint(words) for word in kin}
    words |= {plural(word) for word in words}
    return "|".join(re.escape(word).replace(r"\ ", r"[\s-]?")
                    + (r"\w*" if len(word) > 4 else "(?:e?s)?") for word in sorted(words))


def naming(names) -> re.Pattern:
    """What finds a text that names one of `names`, by a plural, a synonym or a kin word too."""
    return _naming(tuple(sorted(names)))


@lru_cache(maxsize=10_000)
def _naming(names: tuple[str, ...]) -> re.Pattern:
    forms = "|".join(map(_forms, names))
    return re.compile(rf"\b(?:{forms})\b" if forms else r"(?!)", re.IGNORECASE)
