"""Settings of mail: from a private file or the environment, refused by name, the password never shown."""

import os

import pytest

from thalweg.desk.settings import mail_settings, public_address

SECRET = "hunter2 & more"
GOOD = f"""
host = "smtp.example.org"
user = "desk"
password = "{SECRET}"
from = "Desk <desk@example.org>"
public_url = "https://desk.example.org/"
zone = "Europe/Berlin"
"""


def wrote(folder, text=GOOD, mode=0o600):
    path = folder / "mail.toml"
    path.write_text(text, encoding="utf8")
    path.chmod(mode)
    return folder


def test_a_file_is_enough_and_the_environment_stands_before_it(tmp_path):
    found = mail_settings(wrote(tmp_path), environ={})
    assert (found.host, found.port, found.security) == ("smtp.example.org", 587, "starttls")
    assert (found.password, found.public_url, found.zone.key) == (
        SECRET,
        "https://desk.example.org",
        "Europe/Berlin",
    )
    environ = {"THALWEG_MAIL_SECURITY": "ssl", "THALWEG_PUBLIC_URL": "https://other.example.org"}
    found = mail_settings(tmp_path, environ=environ)
    assert (found.port, found.public_url) == (465, "https://other.example.org")
    assert (
        mail_settings(tmp_path, public_url="http://here:8600", environ=environ).public_url
        == "http://here:8600"
    )


def test_without_a_server_there_are_no_settings(tmp_path):
    assert mail_settings(tmp_path, environ={"THALWEG_MAIL_USER": "desk"}) is None


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(tmp_path, mode):
    with pytest.raises(ValueError, match=r"must be readable by its owner alone: chmod 600"):
        mail_settings(wrote(tmp_path, mode=mode), environ={})


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        ({"THALWEG_MAIL_PORT": "0"}, "mail port must be from 1 to 65535, got '0'"),
        ({"THALWEG_MAIL_SECURITY": "tls"}, "mail security must be one of none, ssl, starttls; got 'tls'"),
        ({"THALWEG_MAIL_SECURITY": "none"}, "mail security must be starttls or ssl where a password is sent"),
        ({"THALWEG_MAIL_FROM": "a@b.org\r\nBcc: c@d.org"}, "mail from must be an e-mail address"),
        (
            {"THALWEG_MAIL_ZONE": "Berlin"},
            "mail zone must be a time zone such as Europe/Berlin, got 'Berlin'",
        ),
        ({"THALWEG_MAIL_ZONE": "../../etc/passwd"}, "mail zone must be a time zone"),
        ({"THALWEG_PUBLIC_URL": "javascript:alert(1)"}, "public_url must be like https://desk.example.org"),
    ],
)
def test_what_is_wrong_is_named_and_the_password_never_is(tmp_path, environ, why):
    with pytest.raises(ValueError) as error:
        mail_settings(wrote(tmp_path), environ=environ)
    assert str(error.value).startswith(why) and "hunter2" not in str(error.value)


@pytest.mark.parametrize("text", [f'password = "{SECRET}', f"password = {SECRET}", f'passwort = "{SECRET}"'])
def test_a_file_with_a_slip_does_not_give_the_password_away(tmp_path, text):
    with pytest.raises(ValueError) as error:
        mail_settings(wrote(tmp_path, text), environ={})
    assert "hunter2" not in str(error.value) and error.value.__cause__ is None


def test_showing_settings_does_not_show_the_password(tmp_path):
    found = mail_settings(wrote(tmp_path), environ={})
    assert "hunter2" not in repr(found) + str(found)


@pytest.mark.parametrize(
    "address",
    ["desk.example.org", "https://", "https://a b", "https://user:pw@x.org", "https://x.org/p", "https://x.org?q",
     "https://x.org:99999", "https://x.org\r\nX: y", "ftp://x.org"],
)  # fmt: skip
def test_a_public_address_is_a_scheme_and_a_host(address):
    with pytest.raises(ValueError, match="public_url must be like"):
        public_address(address)
