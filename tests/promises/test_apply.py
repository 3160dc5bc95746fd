"""Changes that a machine makes in a script: each at its line, all or none, with the script as it was beside it."""

from pathlib import Path

import pytest
from platform_check.changes import Edit, apply, changed
from script_file import Refused

SOURCE = "one = 1\ntwo = 1\nif one:\n    raise_for_status()\n"


@pytest.mark.parametrize(
    ("edit", "line", "new"),
    [
        (Edit("2", "1"), 2, "one = 1\ntwo = 2\nif one:\n    raise_for_status()\n"),
        (Edit("look()", "raise_for_status()", above=True), 4, SOURCE.replace("    raise", "    look()\n    raise")),
        (Edit("pass", "if one:\n    raise_for_status()"), 3, "one = 1\ntwo = 1\npass\n"),
    ],
)
def test_an_edit_is_made_on_its_line_alone(edit: Edit, line: int, new: str) -> None:
    assert changed(SOURCE, [(edit, line)]) == (new, [])


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (Edit("2", "3"), 1),
        (Edit("2", "1"), 99),
        (Edit("2", "one = 1\ntwo = 2"), 1),
        (Edit("2", ""), 1),
        (Edit("x", "n"), 4),
    ],
)
def test_an_edit_that_does_not_fit_is_left(edit: Edit, line: int) -> None:
    source = SOURCE.replace("raise_for_status()", "n + n")
    assert changed(source, [(edit, line)]) == (source, [(edit, line)])


def test_of_two_edits_of_the_same_text_the_later_one_is_left() -> None:
    edits = [(Edit("2", "1"), 1), (Edit("3", "1"), 1)]
    assert changed(SOURCE, edits) == (SOURCE.replace("one = 1", "one = 2"), [edits[1]])


def test_line_ends_mark_and_rights_of_the_file_stay_and_nothing_beside_it_is_written_over(tmp_path: Path) -> None:
    path, before = tmp_path / "my_script.py", b"\xef\xbb\xbfa = 1\r\nb = 1\r\n"
    path.write_bytes(before)
    path.chmod(0o750)
    mode = path.stat().st_mode  # Windows has no such rights
    (tmp_path / "my_script.before.py").write_text("older")
    kept, _ = apply(path, [(Edit("2", "1"), 2), (Edit("c = 1", "a", above=True), 1)])
    assert path.read_bytes() == b"\xef\xbb\xbfc = 1\r\na = 1\r\nb = 2\r\n"
    assert path.stat().st_mode == mode
    assert (kept.name, kept.read_bytes()) == ("my_script.before-2.py", before)
    assert (tmp_path / "my_script.before.py").read_text() == "older"


def test_a_script_that_would_be_no_python_any_more_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "my_script.py"
    path.write_text("a = 1\n")
    with pytest.raises(Refused, match=r"would no longer be valid Python"):
        apply(path, [(Edit("(", "1"), 1)])
    assert [each.name for each in tmp_path.iterdir()] == ["my_script.py"]
    assert path.read_text() == "a = 1\n"
