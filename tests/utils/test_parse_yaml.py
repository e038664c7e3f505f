from __future__ import annotations

import pytest

from snnet.utils.parse_yaml import parse_yaml

LAUGHS = ''.join(f'{b}: &{b} [{", ".join(8 * [f"*{a}"])}]\n' for a, b in zip('abcde', 'bcdef', strict=True))


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        (f'a: &a [x]\n{LAUGHS}', 'more than 10,000 values'),
        ('anchors: &a [*a]', 'more than 10,000 values'),
        ('lr: ' + '[' * 5000, 'nested too deeply'),
        ('{a: ' * 3000, 'nested too deeply'),
        ('seed: ' + '9' * 5000, 'limit .* for integer string conversion'),
        ('lr: !!python/object/apply:os.system ["true"]', 'could not determine a constructor'),
        ('lr: *nowhere', 'undefined alias'),
        ('a: [1', "expected ',' or ']'"),
    ],
)
def test_what_is_no_table_of_settings_ends_in_one_line(text, said):
    with pytest.raises(ValueError, match=said) as error:
        parse_yaml(text)
    assert '\n' not in str(error.value)


def test_aliases_that_repeat_little_are_read():
    assert parse_yaml('a: &a [1, 2]\nb: *a') == {'a': [1, 2], 'b': [1, 2]}
