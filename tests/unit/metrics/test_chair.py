"""CHAIR on captions whose objects are counted by hand."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truthgate_eval.metrics.chair import (
    COUNTS,
    METRICS,
    CaptionObjects,
    Vocabulary,
    clean_name,
    find_objects,
    measure,
    metrics_from_counts,
)

# In the form of the published list: the object, then its other names.
VOCABULARY = Vocabulary.of([
    ["person", "woman", "man", "people", "baby", "adult", "passenger", "child"],
    ["bicycle", "bike"], ["bus", "minibus"], ["airplane", "jet"], ["train"], ["traffic light", "stop light"],
    ["bench"], ["bird", "goose"], ["dog", "puppy"], ["sheep"], ["bear"], ["tie", "bow", "bow tie"],
    ["wine glass"], ["cup"], ["knife"], ["orange"], ["hot dog"], ["chair", "seat", "stool"],
    ["toilet"], ["bowl", "plate"], ["scissors"], ["mouse"], ["teddy bear"], ["oven", "stove", "stove top oven"],
])  # fmt: skip

# A caption, and the objects that it mentions.
CAPTIONS = [
    ("", []),
    ("A quiet and empty room.", []),
    ("A dog sits on a bench.", ["dog", "bench"]),
    ("An ORANGE beside a Cup", ["orange", "cup"]),
    # Plurals, regular and not.
    ("Two dogs and three buses near the benches.", ["dog", "bus", "bench"]),
    ("Women, children and people", ["person", "person", "person"]),
    ("Puppies, mice, knives, geese, sheep.", ["dog", "mouse", "knife", "bird", "sheep"]),
    ("Scissors; some wine glasses!", ["scissors", "wine glass"]),
    # A verb looks like a plural; a bus is not several of something.
    ("He cups his hands and the bus passes.", ["cup", "bus"]),
    # Synonyms, and several names of one object: each is a mention.
    ("A puppy on a bike looks at a dog.", ["dog", "bicycle", "dog"]),
    # Repeated.
    ("A dog, another dog and a third dog.", ["dog", "dog", "dog"]),
    # Objects of two words, in one word, with a hyphen, in the plural.
    ("A hot dog under a traffic light.", ["hot dog", "traffic light"]),
    ("Hot dogs near stop-lights and a teddy-bear", ["hot dog", "traffic light", "teddy bear"]),
    ("A dog is hot.", ["dog"]),
    ("a stove top oven", ["oven"]),
    ("an orange-coloured cup", ["cup"]),
    ("the dog's bowl and the woman\u2019s bikes", ["dog", "bowl", "person", "bicycle"]),
    # What the published code treats as one thing.
    ("A baby bird and an adult sheep", ["bird", "sheep"]),
    ("A baby with a bear", ["person", "bear"]),
    ("a passenger jet above passenger trains", ["airplane", "train"]),
    ("a passenger on a train", ["person", "train"]),
    ("a man in a bow tie", ["person", "tie"]),
    ("The toilet seat is up.", ["toilet"]),
    ("The seat of the white toilet, and a stool.", ["toilet", "chair"]),
    ("A seat.", ["chair"]),
    ("He slides into home plate beside the train tracks.", []),
    ("The train stops.", ["train"]),
]


@pytest.mark.parametrize(("caption", "objects"), CAPTIONS)
def test_the_objects_of_a_caption_are_those_counted_by_hand(caption: str, objects: list[str]) -> None:
    assert [one.object for one in VOCABULARY.mentions(caption)] == objects


def test_the_metrics_of_four_captions_are_those_worked_by_hand() -> None:
    """12 mentions, of which 5 are wrong, in 2 of 4 captions; 6 of 8 objects are mentioned; 27 words."""
    found = [
        # The second dog is a mention, but no further object. Bench is wrong. 8 words.
        find_objects("A dog and a puppy beside a bench.", ["dog", "cup"], VOCABULARY),
        # Nothing wrong: a bike is the annotated bicycle. 6 words.
        find_objects("Two people ride bikes and buses.", ["person", "bicycle", "bus"], VOCABULARY),
        # No object. 3 words.
        find_objects("An empty street.", ["bird"], VOCABULARY),
        # Four wrong mentions, three of them of one object. 10 words.
        find_objects("Hot dogs, hot dogs, a hot dog; cup, orange, knife", ["cup", "knife"], VOCABULARY),
    ]
    assert [one.hallucinated for one in found] == [
        ("bench",), (), (), ("hot dog", "hot dog", "hot dog", "orange")
    ]  # fmt: skip
    assert found[1].mentioned == ("person", "bicycle", "bus") and found[2].mentioned == ()
    words = [8, 6, 3, 10]
    assert [one.words for one in found] == words
    assert measure(found) == pytest.approx(
        {"chair_s": 2 / 4, "chair_i": 5 / 12, "recall": (1 + 3 + 0 + 2) / 8, "length": sum(words) / 4}
    )


# A caption of an image with a dog and a bench, with its mentions, those that are wrong, and the objects that it finds.
WORKED = [
    # plural: dogs are the dog, buses are a bus, which is not there
    pytest.param("Three dogs and two buses", 2, 1, 1, id="plural"),
    # synonym: a puppy is the dog, a bike is a bicycle, which is not there
    pytest.param("A puppy beside a bike", 2, 1, 1, id="synonym"),
    # an object of two words: one mention of a hot dog, which is not there, and none of a dog
    pytest.param("A hot dog on a bench", 2, 1, 1, id="two words"),
    pytest.param("An empty room", 0, 0, 0, id="none"),
    # repeated: every time is a mention, an object is found once
    pytest.param("A dog, a dog and a dog, a cup and a cup", 5, 2, 1, id="repeated"),
]


@pytest.mark.parametrize(("caption", "mentions", "wrong", "recalled"), WORKED)
def test_one_caption_has_the_published_ratios(caption: str, mentions: int, wrong: int, recalled: int) -> None:
    """CHAIR_i = wrong mentions / mentions; CHAIR_s = captions with a wrong one / captions, here of two."""
    other = find_objects("A dog", ["dog"], VOCABULARY)  # 1 mention, right; 1 of 1 object is found
    measured = measure([find_objects(caption, ["dog", "bench"], VOCABULARY), other])
    assert measured["chair_i"] == pytest.approx(wrong / (mentions + 1))
    assert measured["chair_s"] == (0.5 if wrong else 0.0)
    assert measured["recall"] == pytest.approx((recalled + 1) / (2 + 1))


def test_chair_i_is_of_all_mentions_together_and_no_mean_over_captions() -> None:
    short = find_objects("a dog", ["cup"], VOCABULARY)  # 1 of 1 is wrong
    long = find_objects("a cup, a cup, a cup, a cup", ["cup"], VOCABULARY)  # 0 of 4
    assert measure([short, long])["chair_i"] == pytest.approx(1 / 5)


def test_captions_without_a_mention_have_no_chair_i() -> None:
    measured = measure([find_objects("Nothing.", [], VOCABULARY)])
    assert measured["chair_s"] == 0 and math.isnan(measured["chair_i"]) and math.isnan(measured["recall"])


def test_the_objects_on_an_image_may_have_any_of_their_names_and_count_once() -> None:
    found = find_objects("A dog.", ["puppy", "dog", "Traffic_Light", "unknown thing"], VOCABULARY)
    assert found.present == ("dog", "traffic light") and found.hallucinated == ()
    assert found.counts[COUNTS.index("recalled")] == 1


def test_names_of_ones_own_objects_win_over_the_published_phrases() -> None:
    own = Vocabulary.of([["toilet seat"], ["seat"], ["toilet"], ["train track"], ["baby bird"], ["bird"]])
    mentioned = [
        one.object for one in own.mentions("A toilet seat, a seat, train tracks, a toilet, baby birds")
    ]
    assert [one.object for one in Vocabulary.of([["train"], ["track"]]).mentions("train tracks")] == ["track"]
    assert mentioned == ["toilet seat", "seat", "train track", "toilet", "baby bird"]


def test_the_later_list_has_a_name_that_two_lists_have() -> None:
    assert Vocabulary.of([["dog", "pet"], ["cat", "pet"]]).object_of("pet") == "cat"


def test_the_entry_of_a_sample_gives_the_objects_back() -> None:
    found = find_objects("A dog and a bench", ["dog"], VOCABULARY)
    entry = found.as_dict()
    assert entry["hallucinated"] == ["bench"] and CaptionObjects.from_dict(entry) == found
    for damage in ({"words": "4"}, {"mentioned": "dog"}, {"annotated": [1]}):
        with pytest.raises(TypeError):
            CaptionObjects.from_dict({**entry, **damage})


captions = st.lists(st.sampled_from([caption for caption, _ in CAPTIONS]), min_size=1, max_size=8)
annotations = st.lists(st.sets(st.sampled_from(sorted(set(VOCABULARY.objects.values())))), min_size=8)


@given(captions, annotations)
@settings(max_examples=30)
def test_the_aggregate_equals_a_count_from_scratch(texts: list[str], on_images: list[set[str]]) -> None:
    by_hand = dict(CAPTIONS)
    found = [find_objects(text, own, VOCABULARY) for text, own in zip(texts, on_images, strict=False)]
    said = [Counter(by_hand[text]) for text in texts]
    wrong = [
        sum(times for name, times in own.items() if name not in image)
        for own, image in zip(said, on_images, strict=False)
    ]
    mentions = sum(own.total() for own in said)
    annotated = sum(len(image) for _, image in zip(texts, on_images, strict=False))
    recalled = sum(name in own for own, image in zip(said, on_images, strict=False) for name in image)
    measured = measure(found)
    assert measured["chair_s"] == pytest.approx(sum(count > 0 for count in wrong) / len(texts))
    assert measured["chair_i"] == pytest.approx(sum(wrong) / mentions if mentions else math.nan, nan_ok=True)
    assert measured["recall"] == pytest.approx(recalled / annotated if annotated else math.nan, nan_ok=True)


def test_many_sums_of_counts_are_measured_at_once() -> None:
    counts = np.array([[[4, 1, 10, 2, 8, 6, 50]], [[2, 2, 4, 4, 1, 0, 9]]], dtype=float)
    assert metrics_from_counts(counts).tolist() == [[[0.25, 0.2, 0.75, 12.5]], [[1.0, 1.0, 0.0, 4.5]]]
    assert len(METRICS) == 4 and len(COUNTS) == 7


def test_a_very_long_name_does_not_make_the_search_long() -> None:
    vocabulary = Vocabulary.of([["dog " * 50_000], ["cat"]])
    assert vocabulary.longest == 10
    assert [one.object for one in vocabulary.mentions("dog cat " * 2_000)] == ["cat"] * 2_000


@pytest.mark.parametrize(("name", "cleaned"), [("Hot_dog ", "hot dog"), ("T-shirt", "t shirt"), ("—", "")])
def test_names_are_cleaned_as_captions_are(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned
