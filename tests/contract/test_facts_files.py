"""The example's facts say the same in both notations: YAML is for people, JSON for programs in any
language."""

import json
import re

import yaml
from atelier.common.v1 import facts_pb2
from google.protobuf import json_format

from shared.formats.facts import load_facts, parse_facts
from tests.suite import ROOT

PHOTOS = ROOT / "examples" / "photos"
# A reader of YAML 1.1 takes these for true or false, where Python's reader takes a word.
BOOLEANS = re.compile("y|n|yes|no|on|off", re.IGNORECASE)


def test_both_files_say_the_same() -> None:
    stated = json.loads((PHOTOS / "facts.json").read_text())
    assert stated == yaml.safe_load((PHOTOS / "facts.yaml").read_text())
    assert parse_facts(stated) == load_facts((PHOTOS / "facts.yaml").read_text())


def test_the_json_is_a_message_of_the_contract() -> None:
    facts = json_format.Parse((PHOTOS / "facts.json").read_text(), facts_pb2.Facts())
    assert facts.product.name and len(facts.points_of_measure) > 10


def test_every_reader_of_yaml_reads_the_same_words() -> None:
    text = (PHOTOS / "facts.yaml").read_text()
    scalars = [each for each in yaml.parse(text) if isinstance(each, yaml.ScalarEvent)]
    assert {each.value for each in scalars if each.style == '"'} > {"y", "N"}
    bare = [each for each in scalars if each.style is None]
    assert not [each.value for each in bare if BOOLEANS.fullmatch(each.value)]
