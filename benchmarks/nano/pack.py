"""The art that nano is made from: emoji as 64x64 RGBA arrays with names, packed into one small folder.

The art is Microsoft's Fluent Emoji (MIT). Unpack three npm packages first, for example with `npm pack` and `tar`:

    @lobehub/fluent-emoji-3d 1.1.0, fluentui-emoji 1.3.0, emojibase-data 17.0.0

    pip install resvg-py
    python -m benchmarks.nano.pack --art-3d DIR --art-svg DIR --labels DIR

Writes `.nano/pictures.npz` and `.nano/names.json` for `python -m benchmarks.nano`, and the example's fine-tuning set,
24 prints with captions, into `simpletuner/nano/pictures/`.
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from benchmarks.nano.pictures import ART, LUMA, SIZE

SVG_FOLDERS = {"flat": "flat", "modern": "modern", "line": "high-contrast"}
GROUPS = (0, *range(3, 8))  # faces, animals and plants, food, travel, activities, objects; no people, symbols or flags
HELD_OUT_EVERY = 16  # every 16th emoji outside the list below is never trained on: it measures the VAE

# What captions call a subject; after "=" the emoji's label where that is another one. All others go by their label.
SUBJECTS = """
a monkey = monkey face, a dog = dog face, a poodle, a wolf, a fox, a raccoon, a cat = cat face, a lion,
a tiger = tiger face, a horse = horse face, a unicorn, a zebra, a cow = cow face, a pig = pig face, a goat, a giraffe,
an elephant, a rhinoceros, a mouse = mouse face, a hamster, a rabbit = rabbit face, a hedgehog, a bat, a bear, a koala,
a panda, a sloth, a kangaroo, a chicken, a baby chick, a penguin, an eagle, a duck, a swan, an owl, a flamingo,
a peacock, a parrot, a frog, a crocodile, a turtle, a snake, a dragon = dragon face, a whale = spouting whale,
a dolphin, a tropical fish, a blowfish, a shark, an octopus, a crab, a lobster, a shrimp, a snail, a butterfly, an ant,
a bee = honeybee, a ladybug = lady beetle, a scorpion,

a mushroom, a cactus, a sunflower, a tulip, a rose, a palm tree, an evergreen tree, a maple leaf, a four leaf clover,

grapes, a watermelon, a tangerine, a lemon, a banana, a pineapple, a red apple, a green apple, a pear, a peach,
cherries, a strawberry, a tomato, a coconut, an avocado, an eggplant, a carrot, corn = ear of corn, a hot pepper,
broccoli, an onion, a croissant, a pretzel, pancakes, cheese = cheese wedge, a hamburger, french fries, pizza,
a hot dog, a taco, popcorn, an ice cream, a doughnut, a cookie, a birthday cake, a cupcake, a lollipop,
a cup of coffee = hot beverage, a teapot, a beer mug,

a house, a castle, a tent, a volcano, a rocket, an airplane, a helicopter, a sailboat, an anchor, a bicycle,
a car = automobile, a bus, a tractor, a locomotive, a flying saucer, an alarm clock, an hourglass = hourglass done,
a crescent moon, the sun = sun, a star, a cloud, a rainbow, an umbrella, a snowman = snowman without snow, fire,

a balloon, a gift = wrapped gift, a trophy, a soccer ball, a basketball, a teddy bear, a top hat, a crown, a backpack,
a gem stone, a bell, a guitar, a violin, a trumpet, a drum, a telephone, a laptop, a camera, a television,
a light bulb, a candle, a book = closed book, an envelope, a pencil, scissors, a key, a hammer, an axe, a bomb,
a shield, a magnet, a microscope, a chair, sunglasses, a t-shirt
"""

# What the example's pictures show: subjects of many colours, from all over the list above.
FINE_TUNING_SET = """
a fox, a cat, a panda, an owl, a penguin, a frog, a tropical fish, a butterfly, a strawberry, a banana, a carrot,
a mushroom, a hamburger, a cupcake, a rocket, a house, a car, a guitar, a light bulb, a key, a koala, a pig, a whale,
grapes
"""

# The example's style: a print in three inks, dark to light, on pale paper. The base never saw this palette.
PRINT_INKS = ((28, 24, 84), (0, 134, 150), (150, 228, 190))
PRINT_PAPER = (240, 246, 230)

# Subjects whose line icon the base never saw in any ink, to tell whether a style carries over to another subject.
LINES_UNSEEN = """
a fox, a cat, a panda, an owl, a penguin, a frog, a tropical fish, a butterfly, a strawberry, a banana, a carrot,
a mushroom, a hamburger, a cupcake, a rocket, a house, a car, a guitar, a light bulb, a key,
a rabbit, an elephant, a turtle, a rose, a pineapple, a doughnut, a cup of coffee, a bus, a sailboat, a bell, a camera,
a teddy bear
"""


def entries(table: str) -> list[str]:
    return [entry for entry in (part.strip() for part in table.replace("\n", " ").split(",")) if entry]


def read_subjects() -> dict[str, str]:
    """What captions call each subject -> the label of its emoji."""
    subjects = {}
    for entry in entries(SUBJECTS):
        name, _, label = entry.partition(" = ")
        bare = name.split(" ", 1)[1] if name.startswith(("a ", "an ")) else name
        subjects[name] = label or bare
    return subjects


def read_labels(folder: Path) -> dict[str, dict]:
    """Label in lower case -> emojibase's entry, for all emoji that may be learned from."""
    emoji = json.loads((folder / "en" / "data.json").read_text(encoding="utf-8"))
    return {
        entry["label"].lower(): entry
        for entry in emoji
        if entry.get("group") in GROUPS and not entry["label"].endswith(("o’clock", "-thirty"))
    }


def shrink(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.BOX))  # (64, 64, 4) uint8


def draw(label: str, hexcode: str, art_3d: Path, art_svg: Path) -> np.ndarray | None:
    """One emoji in all ART, (4, 64, 64, 4) uint8 RGBA; None where a style is missing."""
    code = hexcode.lower()
    names = [art_3d / "assets" / f"{name}.webp" for name in (code, f"{code}-fe0f", code.removesuffix("-fe0f"))]
    path_3d = next((path for path in names if path.exists()), None)
    slug = label.replace(" ", "-").replace("’", "").replace(".", "")
    paths = [art_svg / "icons" / SVG_FOLDERS[style] / f"{slug}.svg" for style in ART[1:]]
    if path_3d is None or not all(path.exists() for path in paths):
        return None
    with Image.open(path_3d) as picture:
        drawn = [shrink(picture)]
    for path in paths:
        svg = path.read_text(encoding="utf-8")
        png = resvg_py.svg_to_bytes(svg_string=svg, width=4 * SIZE, height=4 * SIZE, skip_system_fonts=True)
        drawn.append(shrink(Image.open(io.BytesIO(bytes(png)))))
    return np.stack(drawn)


def printed(flat: np.ndarray) -> Image.Image:
    """A flat emoji, (64, 64, 4) uint8 RGBA, as a print: each ink stands for a brightness."""
    rgb, alpha = flat[..., :3] / 255, flat[..., 3:] / 255
    luma = rgb @ np.array(LUMA)
    stops = np.linspace(0, 1, len(PRINT_INKS))
    inked = np.stack([np.interp(luma, stops, channel) for channel in np.array(PRINT_INKS).T], -1)
    return Image.fromarray((inked * alpha + np.array(PRINT_PAPER) * (1 - alpha)).round().astype(np.uint8))


def write_fine_tuning_set(folder: Path, pictures: dict[str, np.ndarray]) -> None:
    """Prints as PNG files, each beside a caption that begins as the base's captions do.

    "flat emoji of ..." is a wording that the base knows. A style word that it never met would pull subjects outside
    the set to nothing recognisable; this way a LoRA only has to recolour what the base already draws.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for subject in entries(FINE_TUNING_SET):
        stem = subject.removeprefix("a ").removeprefix("an ")
        picture = printed(pictures[subject][ART.index("flat")])
        picture.quantize(48, dither=Image.Dither.NONE).save(folder / f"{stem}.png", optimize=True)
        (folder / f"{stem}.txt").write_text(f"flat emoji of {subject}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--art-3d", type=Path, required=True, help="unpacked @lobehub/fluent-emoji-3d")
    parser.add_argument("--art-svg", type=Path, required=True, help="unpacked fluentui-emoji")
    parser.add_argument("--labels", type=Path, required=True, help="unpacked emojibase-data")
    parser.add_argument("--out", type=Path, default=Path(".nano"), help="folder for the packed pictures")
    parser.add_argument("--pictures", type=Path, default=Path("simpletuner/nano/pictures"), help="fine-tuning set")
    options = parser.parse_args()

    labels = read_labels(options.labels)
    subjects = read_subjects()
    unknown = [label for label in subjects.values() if label not in labels]
    assert not unknown, f"no such labels: {unknown}"

    drawn = {label: draw(label, entry["hexcode"], options.art_3d, options.art_svg) for label, entry in labels.items()}
    missing = [label for label in subjects.values() if drawn[label] is None]
    assert not missing, f"not drawn in every style: {missing}"
    captioned = {name: drawn[label] for name, label in subjects.items()}
    others = sorted(set(labels) - set(subjects.values()))
    others = [label for label in others if drawn[label] is not None]
    held_out = others[::HELD_OUT_EVERY]
    captioned |= {label: drawn[label] for label in others if label not in held_out}

    options.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        options.out / "pictures.npz",  # each (num_emoji, 4 styles, 64, 64, 4) uint8 RGBA
        drawn=np.stack(list(captioned.values())),
        held_out=np.stack([drawn[label] for label in held_out]),
    )
    names = {
        "subjects": list(captioned),
        "lines_unseen": entries(LINES_UNSEEN),
        "words": [" ".join([label, *entry.get("tags", [])]).lower() for label, entry in sorted(labels.items())],
    }
    (options.out / "names.json").write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
    write_fine_tuning_set(options.pictures, captioned)
    print(f"{len(captioned)} subjects and {len(held_out)} held out, in {len(ART)} styles")


if __name__ == "__main__":
    main()
