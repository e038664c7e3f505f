from __future__ import annotations

from dataclasses import dataclass

import pytest

from snnet import SnnetError
from snnet.config.parse import parse, to_yaml
from snnet.config.sections import (
    changes,
    check_ranges,
    flattened,
    from_flat,
    option,
    options_of,
    section,
    to_flat,
    with_changes,
)  # fmt: skip


@dataclass
class Engine:
    """What moves the boat."""

    power: float = option(10.0, 'horse power', least=0)
    fuel: str = option('wind', 'what it burns', choices=('wind', 'oil'))


@dataclass
class Crew:
    """Who sails the boat."""

    names: list[str] = option([], 'of the crew')
    captain: str = option('', 'name of the captain', free=True)


@dataclass
class Boat:
    """Settings of a boat."""

    length: int = option(7, 'length in meters')
    engine: Engine = section(Engine)
    crew: Crew = section(Crew)


@dataclass
class TwoEngines:
    """Settings with a name twice."""

    power: float = option(1.0, 'power')
    engine: Engine = section(Engine)


def parsed(tmp_path, text, *argv):
    (tmp_path / 'boat.yaml').write_text(text)
    return parse(Boat, ['--config', str(tmp_path / 'boat.yaml'), *argv])


def test_flat_and_nested_forms_say_the_same():
    boat = from_flat(Boat, {'power': 3.0, 'names': ['a'], 'length': 5})
    assert boat == Boat(5, Engine(3.0), Crew(['a']))
    assert to_flat(boat) == {'length': 5, 'power': 3.0, 'fuel': 'wind', 'names': ['a'], 'captain': ''}
    assert from_flat(Boat, to_flat(boat)) == boat
    assert with_changes(boat, fuel='oil') == Boat(5, Engine(3.0, 'oil'), Crew(['a']))
    assert boat.engine.fuel == 'wind', 'the original is left alone'


def test_defaults_are_not_shared():
    one, other = Boat(), Boat()
    one.crew.names.append('a')
    assert (other.crew.names, options_of(Boat)['names'].default) == ([], [])


@pytest.mark.parametrize(
    'text',
    ['power: 3\nlength: 5\n', 'engine:\n  power: 3\nlength: 5\n', 'engine: {power: 3}\nlength: 5\ncrew: {}\n'],
)
def test_a_file_may_be_flat_or_nested(tmp_path, text):
    assert parsed(tmp_path, text, '--captain', 'Ahab') == Boat(5, Engine(3.0), Crew(captain='Ahab'))


def test_what_is_written_is_nested_and_gives_the_same_again(tmp_path):
    boat = Boat(5, Engine(3.0), Crew(['a', 'b']))
    assert to_yaml(boat).startswith('length: 5\nengine:\n  power: 3.0\n')
    assert parsed(tmp_path, to_yaml(boat)) == boat


@pytest.mark.parametrize(
    ('text', 'hint'),
    [
        ('engine: {powr: 3}', "section 'engine' has no setting 'powr'; did you mean power"),
        ('crew: {power: 3}', "section 'crew' has no setting 'power'"),
        ('engine: 3', "'engine' is a section, so it needs a table of settings, not 3"),
        ('engine: {power: 3}\npower: 4', "setting 'power' is given twice"),
        ('engin: {power: 3}', "unknown setting 'engin'; did you mean engine"),
        ('lenght: 3', "unknown setting 'lenght'; did you mean length"),
        ('3: 3', "unknown setting '3'"),
        ('length: .inf', "'length' expects int, but got inf"),
        ('recipe: fast', "unknown setting 'recipe'"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_in_one_sentence(tmp_path, text, hint):
    with pytest.raises(SnnetError, match=hint) as error:
        parsed(tmp_path, text)
    assert 'boat.yaml' in str(error.value) or 'expects' in str(error.value)


def test_a_name_that_two_sections_share_is_a_mistake_of_the_program():
    with pytest.raises(TypeError, match="TwoEngines uses the name 'power' twice"):
        options_of(TwoEngines)


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(SnnetError, match="unknown setting 'fule'; did you mean fuel"):
        from_flat(Boat, {'fule': 'oil'})


@pytest.mark.parametrize(
    ('values', 'hint'),
    [
        ({'power': -1.0}, 'power is at least 0, not -1'),
        ({'power': float('nan')}, 'power is at least 0, not nan'),
        ({'power': float('inf')}, 'power is a finite number, not inf'),
        ({'fuel': 'oik'}, "fuel is one of wind, oil, not 'oik'; did you mean oil"),
    ],
)
def test_values_out_of_range_are_refused(values, hint):
    with pytest.raises(SnnetError, match=hint):
        check_ranges(from_flat(Boat, values))
    check_ranges(Boat())


def test_changes_are_told_whatever_the_form_of_the_earlier_file_and_free_settings_may_change():
    now = Boat(5, Engine(3.0), Crew(captain='Ahab'))
    for before in ({'power': 3.0, 'length': 7}, {'engine': {'power': 3.0}, 'length': 7, 'crew': {'captain': 'Peleg'}}):
        assert changes(now, flattened(Boat, before)) == ['length was 7, is 5'], 'settings that are new had the default'


def test_help_is_grouped_by_section(capsys):
    with pytest.raises(SystemExit):
        parse(Boat, ['--help'])
    said = capsys.readouterr().out
    assert said.rindex('--length') < said.index('What moves the boat.') < said.rindex('--power')
