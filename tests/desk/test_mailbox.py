"""An address is taken only if no header and no server can read anything else into it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.desk.mailbox import mail_address, named_address


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("ada@example.org", "ada@example.org"),
        (" Ada.L+papers@EXAMPLE.org ", "Ada.L+papers@example.org"),
        ("ada@bücher.example", "ada@xn--bcher-kva.example"),
        ("root@localhost", "root@localhost"),
    ],
)
def test_an_address_is_kept_with_a_plain_domain(given, kept):
    assert mail_address(given) == kept


@pytest.mark.parametrize(
    "attack",
    [
        "ada@example.org\r\nBcc: eve@example.org",
        "ada@example.org\nSubject: hello",
        "ada@example.org,eve@example.org",
        "ada@example.org eve@example.org",
        "Ada <ada@example.org>",
        '"ada\r\n"@example.org',
        '"a b"@example.org',
        "ada@[127.0.0.1]",
        "ada@example.org>\r\nRCPT TO:<eve@example.org",
        "ada@example.org\x00",
        "ad\udc80a@example.org",
        "@example.org",
        "ada@",
        "ada@nowhere",
        "ada@-example.org",
        "a" * 65 + "@example.org",
        "ada@" + ".".join(["a" * 60] * 5),
        "",
    ],
)
def test_everything_else_is_refused_by_name(attack):
    with pytest.raises(ValueError, match=r"address must be an e-mail address such as ada@example.org"):
        mail_address(attack)
    with pytest.raises(ValueError, match="mail from must be"):
        named_address("mail from", attack + "\r\nX: y")


@given(st.text(max_size=40), st.text(max_size=20))
def test_what_is_taken_is_one_line_of_ascii_with_one_at(left, right):
    try:
        kept = mail_address(f"{left}@{right}")
    except ValueError:
        return
    assert kept.isascii() and kept.isprintable() and kept.count("@") == 1
    assert not set(kept) & set(' \r\n,;<>"()[]\\')


def test_a_name_before_an_address_is_kept():
    assert named_address("from", "The desk <desk@example.org>") == "The desk <desk@example.org>"
    assert named_address("from", "desk@example.org") == "desk@example.org"
