"""Who may call: TLS, certificates of clients, tokens, and what a server refuses to be without."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess

import pytest
from vla_core.errors import UserError
from vla_core.testing import make_observation, make_spec
from vla_serve import TLS, PolicyClient, PolicyClientError, PolicyServer, PolicyServerError, SessionLost
from vla_serve.host.listen import Reservation, Security, read_token
from vla_serve.testing import TimedPolicy, ToyPolicy

SPEC = make_spec(1)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, and certificates of it, expired ones too; and a client's of a foreign one."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl")
    path = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=path)

    for ca in ("ca", "foreign"):
        key = ["-newkey", "rsa:2048", "-nodes", "-keyout", f"{ca}.key"]
        openssl("req", "-x509", *key, "-out", f"{ca}.pem", "-days", "2", "-subj", f"/CN={ca}")
    (path / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name, ca in (("server", "ca"), ("robot", "ca"), ("twin", "ca"), ("stranger", "foreign")):
        key = ["-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key"]
        # The authority gives both robots the same names, and none that is a common name.
        subject = "/O=fleet" if name in ("robot", "twin") else f"/CN={name}"
        openssl("req", *key, "-out", f"{name}.csr", "-subj", subject)
        sign = ["-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial", "-days", "2"]
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *sign, "-extfile", "names")
    for name in ("server", "robot"):
        over = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "-1", "-extfile", "names"]
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}-expired.pem", *over)
    return path


def ask(server, **options):
    with PolicyClient(server.address, timeout_s=5, **options) as client:
        return client.predict(make_observation(SPEC))


def test_tls_with_a_token(certificates):
    security = Security(certificates / "server.pem", certificates / "server.key", token="secret")
    tls = TLS(ca=certificates / "ca.pem")
    with PolicyServer(TimedPolicy(SPEC), host="0.0.0.0", security=security) as server:
        server._host = "127.0.0.1"
        ask(server, tls=tls, token="secret")
        for token in ("wrong", None):
            with pytest.raises(PolicyClientError, match="token") as caught:
                ask(server, tls=tls, token=token)
            assert list(caught.value.fields) == ["token"]
        with pytest.raises(PolicyServerError):
            ask(server, token="secret")
        with pytest.raises(PolicyServerError):
            ask(server, tls=TLS(ca=certificates / "foreign.pem"), token="secret")


def test_mutual_tls_and_sessions_of_another_owner(certificates):
    def file(name):
        return certificates / name

    security = Security(file("server.pem"), file("server.key"), client_ca=file("ca.pem"))
    robot = TLS(file("ca.pem"), file("robot.pem"), file("robot.key"))
    with PolicyServer(TimedPolicy(SPEC), security=security) as server:
        with PolicyClient(server.address, tls=robot) as client:
            client.predict(make_observation(SPEC))
            twin = TLS(file("ca.pem"), file("twin.pem"), file("twin.key"))
            with PolicyClient(server.address, tls=twin) as thief:
                own, thief._session = thief._session, client._session
                with pytest.raises(SessionLost):
                    thief.predict(make_observation(SPEC))
                thief._session = own
            client.predict(make_observation(SPEC))
        for tls in (TLS(file("ca.pem")), TLS(file("ca.pem"), file("stranger.pem"), file("stranger.key"))):
            with pytest.raises(
                PolicyServerError, match="a client's certificate that it knows and that is valid"
            ):
                ask(server, tls=tls)


def test_expired_certificates_are_refused_on_either_side(certificates):
    def file(name):
        return certificates / name

    tls = TLS(file("ca.pem"), file("robot.pem"), file("robot.key"))
    over = TLS(file("ca.pem"), file("robot-expired.pem"), file("robot.key"))
    good = Security(file("server.pem"), file("server.key"), client_ca=file("ca.pem"))
    with PolicyServer(TimedPolicy(SPEC), security=good) as server:
        ask(server, tls=tls)
        with pytest.raises(PolicyServerError):
            ask(server, tls=over)
        ask(server, tls=tls)
    old = Security(file("server-expired.pem"), file("server.key"), client_ca=file("ca.pem"))
    with PolicyServer(TimedPolicy(SPEC), security=old) as server, pytest.raises(PolicyServerError):
        ask(server, tls=tls)


def test_tokens_stay_out_of_the_log(caplog):
    with (
        caplog.at_level("DEBUG"),
        PolicyServer(TimedPolicy(SPEC), security=Security(token="the-right-one")) as server,
    ):
        ask(server, token="the-right-one")
        with pytest.raises(PolicyClientError):
            ask(server, token="a-wrong-one")
    assert "token" in caplog.text
    assert "the-right-one" not in caplog.text
    assert "a-wrong-one" not in caplog.text


def test_an_open_address_needs_more_than_a_flag(certificates):
    cert = {"cert": certificates / "server.pem", "key": certificates / "server.key"}
    for security in (Security(), Security(token="secret"), Security(**cert)):
        with pytest.raises(UserError, match=r"others can reach 0\.0\.0\.0; give --tls_cert"):
            PolicyServer(TimedPolicy(SPEC), host="0.0.0.0", security=security).start()


def test_insecure_is_said(caplog):
    with PolicyServer(TimedPolicy(SPEC), host="0.0.0.0", security=Security(insecure=True)) as server:
        server._host = "127.0.0.1"
        ask(server)
    assert "insecure: whoever reaches 0.0.0.0 can use the policy, and listen" in caplog.text


def test_what_insecure_lets_others_do_depends_on_the_rest(certificates):
    cert = {"cert": certificates / "server.pem", "key": certificates / "server.key"}
    everywhere, here = ["0.0.0.0"], ["127.0.0.1", "::1"]
    for options, words in (
        ({}, "insecure: whoever reaches 0.0.0.0 can use the policy, and listen to those who do"),
        (cert, "insecure: whoever reaches 0.0.0.0 can use the policy"),
        ({"token": "secret"}, "insecure: the token travels in the clear to 0.0.0.0"),
        ({**cert, "token": "secret"}, ""),
        ({**cert, "client_ca": certificates / "ca.pem"}, ""),
    ):
        security = Security(insecure=True, **options)
        assert security.warning(everywhere)[: len(words) or None] == words
        assert security.warning(here) == ""


def test_the_program_warns_whatever_the_level_of_its_log(tmp_path, monkeypatch, capsys):
    from vla_serve import server, server_cli

    def stop(*_, **__):
        raise UserError("far enough")

    monkeypatch.setattr(server_cli, "_loader", lambda args: lambda path: path)
    monkeypatch.setattr(server, "PolicyServer", stop)
    words = ["--ckpt_path", str(tmp_path), "--host", "0.0.0.0", "--port", "0", "--log_level", "error"]
    assert server_cli.main([*words, "--insecure"]) == 2
    assert "vla-serve: warning: insecure: whoever reaches 0.0.0.0" in capsys.readouterr().err


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="a certificate needs its key"):
        Security(cert=tmp_path / "a")
    with pytest.raises(UserError, match="--tls_client_ca needs"):
        Security(client_ca=tmp_path / "a")
    with pytest.raises(UserError, match="token: must be one line"):
        Security(token="a\nb")
    with pytest.raises(UserError, match="cannot be read"):
        read_token(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        read_token(tmp_path / "empty")
    with pytest.raises(UserError, match="cannot be read"):
        PolicyClient("127.0.0.1:1", tls=TLS(ca=tmp_path / "none"))


def test_open_after_a_lost_session_opens_another():
    with PolicyServer(TimedPolicy(SPEC)) as server, PolicyClient(server.address) as client:
        server.sessions._sessions.clear()
        with pytest.raises(SessionLost):
            client.predict(make_observation(SPEC))
        client.open()
        client.predict(make_observation(SPEC))


def test_a_deadline_without_end_is_none():
    with pytest.raises(UserError, match="timeout_s: must be positive and finite"):
        PolicyClient("127.0.0.1:1", timeout_s=float("inf"))


def test_files_that_are_no_certificates_are_named_before_anything_starts(certificates):
    def file(name):
        return certificates / name

    encrypted = ["openssl", "rsa", "-aes256", "-passout", "pass:x", "-in", file("robot.key")]
    subprocess.run([*encrypted, "-out", file("locked.key")], check=True, capture_output=True)
    for cert, key, words in (
        ("names", "server.key", "tls_cert, tls_key: .*names and .*server.key are no certificate and its key"),
        ("server.pem", "robot.key", "key values mismatch"),
        ("robot.pem", "locked.key", "tls_key: .*locked.key has a password"),
        ("server.pem", "nothing", "tls_key: .*nothing cannot be read"),
    ):
        with pytest.raises(UserError, match=words):
            Security(file(cert), file(key)).check(["127.0.0.1"])
        with pytest.raises(UserError, match=words):
            PolicyClient("127.0.0.1:1", tls=TLS(cert=file(cert), key=file(key))).open()
    with pytest.raises(UserError, match=r"tls_client_ca: .*server.key holds no certificate"):
        Security(file("server.pem"), file("server.key"), file("server.key")).check(["127.0.0.1"])
    with pytest.raises(UserError, match=r"tls_ca: .*names holds no certificate"):
        PolicyClient("127.0.0.1:1", tls=TLS(file("names"))).open()


def test_a_client_that_takes_a_server_for_one_with_or_without_tls_is_told(certificates):
    security = Security(certificates / "server.pem", certificates / "server.key", token="secret")
    tls = TLS(ca=certificates / "ca.pem")
    with PolicyServer(TimedPolicy(SPEC), security=security) as server:
        for options, words in (
            ({}, "does it ask for TLS"),
            ({"tls": TLS(ca=certificates / "foreign.pem")}, "not of the authority that was given"),
        ):
            with pytest.raises(PolicyServerError, match=words):
                ask(server, token="secret", **options)
    with (
        PolicyServer(TimedPolicy(SPEC)) as server,
        pytest.raises(PolicyServerError, match="a server without TLS"),
    ):
        ask(server, tls=tls)


class Greeter:
    name, health, health_body = "greeter", "/health", "OK\n"

    async def serve(self, socket):
        await socket.send_str("hello")


def test_a_bridge_knows_its_clients_by_their_certificates(certificates, caplog):
    aiohttp = pytest.importorskip("aiohttp", reason="needs the extra vla-serve[bridge]")
    from vla_serve.bridges.listener import Listener

    def context(*names):
        known = ssl.create_default_context(cafile=certificates / "ca.pem")
        if names:
            known.load_cert_chain(certificates / names[0], certificates / names[1])
        return known

    async def greeting(url, *names):
        async with aiohttp.ClientSession() as http, http.ws_connect(url, ssl=context(*names)) as socket:
            return await socket.receive_str()

    async def ask():
        security = Security(certificates / "server.pem", certificates / "server.key", certificates / "ca.pem")
        listener = Listener(Greeter(), Reservation("127.0.0.1", 0), security, 2**20, 4)
        await listener.start()
        assert await greeting(listener.url, "robot.pem", "robot.key") == "hello"
        for names in ((), ("stranger.pem", "stranger.key"), ("robot-expired.pem", "robot.key")):
            with pytest.raises((aiohttp.ClientError, ConnectionError)):
                await greeting(listener.url, *names)
        await listener.stop()
        open_ = Listener(Greeter(), Reservation("0.0.0.0", 0), Security(insecure=True), 2**20, 4)
        await open_.start()
        await open_.stop()

    asyncio.run(ask())
    assert "greeter: insecure: whoever reaches 0.0.0.0 can use the policy" in caplog.text


def test_a_connection_to_a_bridge_that_never_asks_is_closed(monkeypatch):
    pytest.importorskip("aiohttp", reason="needs the extra vla-serve[bridge]")
    from vla_serve.bridges import listener as listening

    monkeypatch.setattr(listening, "GREETING_S", 0.2)

    async def rest_of(url, said):
        host, _, port = url.removeprefix("ws://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(said)
        rest = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return rest

    async def ask():
        listener = listening.Listener(Greeter(), Reservation("127.0.0.1", 0), Security(), 2**20, 4)
        await listener.start()
        said = (b"", b"GET /health HTTP/1.1\r\nHost:", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        rests = await asyncio.gather(*(rest_of(listener.url, words) for words in said))
        await listener.stop()
        return rests

    silent, half, whole = asyncio.run(ask())
    assert silent == half == b""
    assert whole.endswith(b"OK\n")


def test_a_connection_to_a_bridge_that_never_greets_is_closed(certificates, monkeypatch):
    pytest.importorskip("aiohttp", reason="needs the extra vla-serve[bridge]")
    from vla_serve.bridges import listener as listening

    monkeypatch.setattr(listening, "GREETING_S", 0.2)

    async def ask():
        security = Security(certificates / "server.pem", certificates / "server.key", token="secret")
        listener = listening.Listener(Greeter(), Reservation("127.0.0.1", 0), security, 2**20, 4)
        await listener.start()
        host, _, port = listener.url.removeprefix("wss://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        rest = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        await listener.stop()
        return rest

    assert asyncio.run(ask()) == b""


def test_a_client_that_stays_keeps_no_bridge_from_ending():
    aiohttp = pytest.importorskip("aiohttp", reason="needs the extra vla-serve[bridge]")
    from vla_serve.bridges.listener import Listener

    class Waiting(Greeter):
        async def serve(self, socket):
            await super().serve(socket)
            await socket.receive()

    async def ask():
        listener = Listener(Waiting(), Reservation("127.0.0.1", 0), Security(), 2**20, 4)
        await listener.start()
        async with aiohttp.ClientSession() as http, http.ws_connect(listener.url) as socket:
            assert await socket.receive_str() == "hello"
            await asyncio.wait_for(listener.stop(), 40)  # by itself aiohttp waits for a minute

    asyncio.run(ask())


def test_a_rollout_shows_what_its_server_asks_for(certificates, toy, tmp_path, capsys):
    from vla_serve.rollout_cli import main

    security = Security(
        certificates / "server.pem", certificates / "server.key", certificates / "ca.pem", token="sesame-42"
    )
    (tmp_path / "token").write_text("sesame-42\n")
    (tmp_path / "wrong").write_text("another\n")
    out = tmp_path / "out"
    tls = {"--tls_ca": "ca.pem", "--tls_cert": "robot.pem", "--tls_key": "robot.key"}
    shown = [word for option, file in tls.items() for word in (option, str(certificates / file))]
    words = f"--env toy --task left --episodes 2 --workers 1 --videos none --out {out}".split()
    with PolicyServer(ToyPolicy(), security=security) as server:
        words += ["--address", server.address, *shown]
        assert main([*words, "--token_file", str(tmp_path / "wrong")]) == 2
        assert "token: " in capsys.readouterr().err
        assert main([*words, "--token_file", str(tmp_path / "token")]) == 0
    written = "".join(path.read_text() for path in out.iterdir() if path.is_file())
    assert "sesame-42" not in written + capsys.readouterr().out
    expert = ["--env", "toy", "--task", "left", "--policy", "expert", "--out", str(out), *shown]
    assert main(expert) == 2
    assert "tls and token: there is no server without --address" in capsys.readouterr().err
