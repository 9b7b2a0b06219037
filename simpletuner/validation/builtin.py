"""Twelve prompts of everyday subjects: where they change, the training reaches beyond its own subject."""

PROMPTS = {
    "builtin_portrait": "a portrait of an old fisherman with a grey beard, soft window light, looking at the camera",
    "builtin_hands": "two hands peeling an orange over a wooden table, seen from above",
    "builtin_animal": "a red fox standing in fresh snow at the edge of a forest",
    "builtin_food": "a bowl of noodle soup with a boiled egg and spring onions, steam rising",
    "builtin_street": "a narrow street in the evening after rain, shop signs mirrored in the puddles",
    "builtin_landscape": "a wide valley with a winding river under heavy clouds, late afternoon",
    "builtin_interior": "a small library with a green armchair, a reading lamp and a sleeping dog",
    "builtin_text": 'a hand-painted wooden sign that says "OPEN UNTIL NINE" on a blue door',
    "builtin_counting": "three yellow lemons and two red apples in a row on a white cloth",
    "builtin_drawing": "a pencil drawing of a sailing ship, fine hatching on cream paper",
    "builtin_object": "a worn leather suitcase with brass locks on an empty railway platform",
    "builtin_abstract": "overlapping translucent circles in orange, teal and dark blue, flat poster style",
}
