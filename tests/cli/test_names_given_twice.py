"""What is named twice is measured once: samples that are counted twice are no more samples."""

from alia_ctx.cli.evaluate_commands import _names


def test_a_name_that_is_given_twice_is_one() -> None:
    assert _names(["vt, qa_1,vt", "qa_1", "cwe", ""]) == ["vt", "qa_1", "cwe"]
