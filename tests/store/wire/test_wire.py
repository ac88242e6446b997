"""Messages arrive as they were sent; what is no message ends the connection, at once and with an error."""

import logging
import os
import random
import socket
import struct
import threading
import time
import typing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradbase.common.errors import StoreError, UsageError
from gradbase.store.machine import messages as m
from gradbase.store.wire import Address, Block, Connection, Letter, Limits, Listener, connect, new_token, parse_address
from gradbase.store.wire._frames import FRAME, pack, read_fields, read_frame
from gradbase.store.wire._handshake import greet, introduce

TOKEN = "a token of enough characters"
LIMITS = Limits(fields_max=4096, bodies_max=1 << 22, handshake_s=2.0, frame_s=2.0)

ints = st.integers(-(1 << 62), 1 << 62)
blocks = st.builds(Block, ints, st.binary(max_size=64), st.binary(max_size=300))
VALUES = {
    int: ints,
    bool: st.booleans(),
    tuple[int, ...]: st.lists(ints, max_size=9).map(tuple),
    tuple[tuple[int, int], ...]: st.lists(st.tuples(ints, ints), max_size=5).map(tuple),
    tuple[tuple[int, int, int], ...]: st.lists(st.tuples(ints, ints, ints), max_size=5).map(tuple),
    object: st.none() | st.lists(blocks, max_size=5).map(tuple),
}


def strategy_of(kind):
    hints = typing.get_type_hints(kind)
    return st.tuples(*(VALUES[hints[name]] for name in kind._fields)).map(lambda values: kind(*values))


messages = st.one_of([strategy_of(kind) for kind in typing.get_args(m.Message)])


def plain(message):
    """With bytes in place of views, so that messages compare."""
    fields = [
        tuple(Block(b.key, bytes(b.head), bytes(b.body)) for b in value)
        if isinstance(value, tuple) and value and isinstance(value[0], Block)
        else value
        for value in message
    ]
    return type(message)(*fields)


def received(connection):
    letter = connection.receive()
    return None if letter is None else letter.message


def packed(message, to=("shard", 3), sender=("worker", 1)):
    return b"".join(pack(Letter(message, to, sender), LIMITS))


def unpack(data, limits=LIMITS):
    """Read one frame from bytes that are all there."""
    view = memoryview(data)
    frame = read_frame(view[: FRAME.size], limits)
    assert (frame.to, frame.sender) == (("shard", 3), ("worker", 1))
    plan = read_fields(frame.kind, view[FRAME.size : FRAME.size + frame.fields_nbytes], frame.bodies_nbytes)
    at, found = FRAME.size + frame.fields_nbytes, []
    for _, _, nbytes in plan.blocks:
        found.append(view[at : at + nbytes])
        at += nbytes
    assert at == len(view)
    return plain(plan.finish(found))


def head(magic=b"gb", version=1, kind=0, role=0, fields=0, bodies=0):
    return FRAME.pack(magic, version, kind, role, 0, 0, 0, fields, bodies)


@given(messages)
@settings(max_examples=400, deadline=None)
def test_every_message_reads_back(message):
    assert unpack(packed(message)) == message


@given(messages, st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_frames_are_refused_or_read_as_another_message(message, data):
    frame = bytearray(packed(message))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    view = memoryview(bytes(frame))
    try:
        read = read_frame(view[: FRAME.size], LIMITS)
        plan = read_fields(read.kind, view[FRAME.size : FRAME.size + read.fields_nbytes], read.bodies_nbytes)
    except StoreError as error:
        assert "sent no message of a store" in str(error)
    else:
        assert sum(nbytes for _, _, nbytes in plan.blocks) == read.bodies_nbytes <= LIMITS.bodies_max


@given(st.integers(0, 40), st.binary(max_size=400), st.integers(0, 1 << 40))
@settings(max_examples=300, deadline=None)
def test_random_fields_are_refused_or_read(kind, data, bodies):
    try:
        frame = read_frame(head(kind=kind, fields=len(data), bodies=bodies % LIMITS.bodies_max), LIMITS)
        read_fields(frame.kind, memoryview(data), bodies)
    except StoreError as error:
        assert "sent no message of a store" in str(error)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (head(magic=b"xx"), "begins with"),
        (head(version=2), "begins with"),
        (head(kind=200), "type 200 does not exist"),
        (head(role=3), "roles 3 and 0 do not exist"),
        (head(fields=1 << 31), "above the limits"),
        (head(bodies=1 << 62), "above the limits"),
    ],
)
def test_bad_frames_are_refused_before_anything_is_read(header, words):
    with pytest.raises(StoreError, match=words):
        read_frame(header, LIMITS)


def test_a_count_is_no_reason_to_take_memory():
    """A clock that claims four billion entries in twelve bytes."""
    fields = struct.pack("<4q", 0, 0, 0, 0) + struct.pack("<I", 0xFFFFFFFF)
    number = typing.get_args(m.Message).index(m.PullReply)
    with pytest.raises(StoreError, match="were announced where 0 are left"):
        read_fields(number, memoryview(fields), 0)


def test_messages_above_the_limits_are_not_sent():
    with pytest.raises(StoreError, match="a Push of .* larger than this connection's limits"):
        packed(m.Push(0, 0, 0, 0, 0, 0, 0, 1, (Block(0, b"", bytes(5 << 20)),)))


class Server:
    """A listener that gives its connections to the test."""

    def __init__(self, address, limits=LIMITS):
        self.connections, self.arrived, self.release = [], threading.Semaphore(0), threading.Event()
        self.listener = Listener(address, TOKEN, self._serve, limits)

    def _serve(self, connection):
        self.connections.append(connection)
        self.arrived.release()
        self.release.wait(30)

    def connection(self):
        assert self.arrived.acquire(timeout=10)
        return self.connections[-1]

    def close(self):
        self.release.set()
        self.listener.close()


@pytest.fixture(params=["tcp", "unix"])
def server(request, tmp_path):
    server = Server(Address() if request.param == "tcp" else Address("", 0, str(tmp_path / "store.sock")))
    yield server
    server.close()


@pytest.fixture
def pair():
    """Two connections that trust each other, without listener or handshake."""
    ours, theirs = (Connection(sock, LIMITS, "the peer") for sock in socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


def test_messages_go_both_ways(server):
    with connect(server.listener.address, TOKEN, LIMITS) as client:
        there = server.connection()
        push = m.Push(1, 2, 3, 4, 0, 9, 0, 1, (Block(7, b"head", os.urandom(1 << 20)), Block(8, b"", b"")))
        sender = threading.Thread(target=client.send, args=(push,))
        sender.start()
        assert plain(received(there)) == push
        sender.join()
        there.send(m.PushReply(1, 3, 0, 4, 0, 0, True, 5))
        assert received(client) == m.PushReply(1, 3, 0, 4, 0, 0, True, 5)
        assert there.received_nbytes == client.sent_nbytes > 1 << 20
        assert client.link_bytes_per_s > 1e6


@given(st.lists(messages, max_size=8))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_stream_of_messages_keeps_its_order(pair, stream):
    ours, theirs = pair
    sender = threading.Thread(target=lambda: [ours.send(message) for message in stream])
    sender.start()
    assert [plain(received(theirs)) for _ in stream] == stream
    sender.join()


def test_bodies_go_where_they_are_wanted(pair):
    ours, theirs = pair
    page, seen = bytearray(3000), []

    def place(kind, key, head, nbytes):
        seen.append((kind, key, bytes(head), nbytes))
        return memoryview(page)[:nbytes] if key == 5 else None

    content = os.urandom(2999)
    ours.send(m.Push(0, 0, 0, 0, 0, 0, 0, 1, (Block(4, b"a", b"other"), Block(5, b"b", content))))
    message = theirs.receive(place).message
    assert seen == [(m.Push, 4, b"a", 5), (m.Push, 5, b"b", 2999)]
    assert page[:2999] == content
    assert bytes(message.payload[0].body) == b"other"


def test_memory_of_bodies_is_reused_only_when_nobody_looks(pair):
    ours, theirs = pair
    kept = []
    for step in range(12):
        ours.send(m.Push(0, 0, 0, step, 0, 0, 0, 1, (Block(0, b"", bytes([step]) * 100_000),)))
        kept.append(received(theirs).payload[0].body)
        if step == 5:
            del kept[:3]
    assert [body[0] for body in kept] == [3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert all(body == bytes([body[0]]) * 100_000 for body in kept)


def test_many_small_blocks(pair):
    ours, theirs = pair
    payload = tuple(Block(i, b"", bytes([i % 256]) * (i % 50)) for i in range(150))
    ours.send(m.Push(0, 0, 0, 0, 0, 0, 0, 1, payload))
    assert plain(received(theirs)).payload == payload


def test_more_blocks_than_one_call_takes(pair):
    ours, theirs = (Connection(sock, Limits(), "the peer") for sock in socket.socketpair())
    payload = tuple(Block(i, b"", bytes([i % 256]) * 7) for i in range(3000))
    threading.Thread(target=ours.send, args=(m.Push(0, 0, 0, 0, 0, 0, 0, 1, payload),)).start()
    assert plain(received(theirs)).payload == payload
    ours.close()
    theirs.close()


def test_threads_may_send_at_once(pair):
    ours, theirs = pair
    body = bytes(200_000)

    def send(worker):
        for seq in range(10):
            ours.send(m.Push(0, worker, 0, seq, 0, 0, 0, 1, (Block(worker, b"", body),)))

    senders = [threading.Thread(target=send, args=(worker,)) for worker in range(4)]
    for sender in senders:
        sender.start()
    arrived = [received(theirs) for _ in range(40)]
    for worker in range(4):
        assert [push.seq for push in arrived if push.worker == worker] == list(range(10))


def test_the_end_between_messages_is_none(pair):
    ours, theirs = pair
    ours.send(m.Leave(1, 2))
    ours.close()
    assert received(theirs) == m.Leave(1, 2)
    assert received(theirs) is None


def test_one_connection_carries_the_messages_of_several_machines(pair):
    ours, theirs = pair
    ours.send(m.Leave(1, 2), to=("coordinator", 0), sender=("worker", 4))
    ours.send(m.Pull(1, 4, 0, 0), to=("shard", 7), sender=("worker", 4))
    assert theirs.receive() == Letter(m.Leave(1, 2), ("coordinator", 0), ("worker", 4))
    assert theirs.receive().to == ("shard", 7)


@pytest.mark.parametrize("cut", [1, 15, 28, 30, 100, 5000])
def test_the_end_within_a_message_is_an_error(cut):
    raw, sock = socket.socketpair()
    frame = packed(m.Push(0, 0, 0, 0, 0, 0, 0, 1, (Block(0, b"h", bytes(9000)),)))
    raw.sendall(frame[:cut])
    raw.close()
    with Connection(sock, LIMITS, "the peer") as connection, pytest.raises(StoreError, match="lost the peer"):
        connection.receive()


@pytest.mark.parametrize("cut", [1, 20, 3000])
def test_a_peer_that_stops_within_a_message_is_not_waited_for(cut):
    raw, sock = socket.socketpair()
    frame = packed(m.Push(0, 0, 0, 0, 0, 0, 0, 1, (Block(0, b"h", bytes(9000)),)))
    raw.sendall(frame[:cut])
    with Connection(sock, Limits(frame_s=0.3), "the peer") as connection:
        begin = time.monotonic()
        with pytest.raises(StoreError, match="did not finish a message within 0.3 s"):
            connection.receive()
    assert time.monotonic() - begin < 3
    raw.close()


def test_a_peer_that_does_not_read_is_not_waited_for():
    raw, sock = socket.socketpair()
    with Connection(sock, Limits(frame_s=0.3), "the peer") as connection:
        with pytest.raises(StoreError, match="took no whole message"):
            connection.send(m.Push(0, 0, 0, 0, 0, 0, 0, 1, (Block(0, b"", bytes(8 << 20)),)))
        with pytest.raises(StoreError, match="lost the peer"):
            connection.send(m.Leave(0, 0))
    raw.close()


def test_a_waiting_receive_ends_when_the_connection_is_closed(pair):
    ours, _ = pair
    found = []
    waiting = threading.Thread(target=lambda: found.append(ours.receive()))
    waiting.start()
    time.sleep(0.05)
    ours.close()
    waiting.join(5)
    assert found == [None]


@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_garbage_after_the_handshake_ends_the_connection(data):
    raw, sock = socket.socketpair()
    with raw, Connection(sock, LIMITS, "the peer") as connection:
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        try:
            while connection.receive() is not None:
                pass
        except StoreError:
            with pytest.raises(StoreError):
                connection.send(m.Leave(0, 0))


def test_the_wrong_token_is_refused(server, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(StoreError, match="refuses this token"):
        connect(server.listener.address, TOKEN + "!", LIMITS)
    wait_for(lambda: "wrong token" in caplog.text)
    assert server.connections == []


def wait_for(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Wire:
    """One end of a handshake in memory; keeps what was written."""

    def __init__(self, sock):
        self.sock, self.written = sock, b""

    def read(self, nbytes):
        data = b""
        while len(data) < nbytes:
            more = self.sock.recv(nbytes - len(data))
            if not more:
                raise StoreError("ended")
            data += more
        return data

    def write(self, data):
        self.written += data
        self.sock.sendall(data)


def test_the_token_never_crosses_the_wire():
    first, second = map(Wire, socket.socketpair())
    server = threading.Thread(target=greet, args=(first, TOKEN.encode()))
    server.start()
    introduce(second, TOKEN.encode())
    server.join()
    assert TOKEN.encode() not in first.written + second.written


def test_an_impostor_without_the_token_is_found_out():
    """It lets everyone in, but cannot prove that it knows the token."""
    first, second = map(Wire, socket.socketpair())

    def impostor():
        first.write(second_hello)
        first.read(50 + 32)
        first.write(struct.pack("<BH", 0, 32) + bytes(32))

    second_hello = hello_of_a_server()
    threading.Thread(target=impostor).start()
    with pytest.raises(StoreError, match="does not know the token"):
        introduce(second, TOKEN.encode())


def hello_of_a_server():
    first, second = map(Wire, socket.socketpair())
    second.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(StoreError):
        greet(first, TOKEN.encode())
    return first.written


def test_an_answer_cannot_be_replayed():
    """Every connection has a nonce of its own, so a recorded proof proves nothing."""
    first, second = map(Wire, socket.socketpair())
    server = threading.Thread(target=greet, args=(first, TOKEN.encode()))
    server.start()
    introduce(second, TOKEN.encode())
    server.join()
    third, fourth = map(Wire, socket.socketpair())
    fourth.write(second.written)
    with pytest.raises(StoreError, match="wrong token"):
        greet(third, TOKEN.encode())


def test_another_version_is_told_so():
    first, second = map(Wire, socket.socketpair())
    second.write(b"GRADBASE" + struct.pack("<H", 99) + bytes(40))
    with pytest.raises(StoreError, match="another version"):
        greet(first, TOKEN.encode())
    second.read(50)
    assert second.read(3 + 15)[3:] == b"another version"
    third, fourth = map(Wire, socket.socketpair())
    fourth.write(b"GRADBASE" + struct.pack("<H", 1) + bytes(40))
    with pytest.raises(StoreError, match="another version of the protocol"):
        introduce(third, TOKEN.encode())


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 9, b"\x80\x04\x95" * 99, bytes(300)])
def test_strangers_are_turned_away(server, noise):
    for _ in range(3):
        with dialled(server) as raw:
            raw.sendall(noise)
            raw.settimeout(5)
            assert len(drained(raw)) <= 50 + 3 + 15
    connect(server.listener.address, TOKEN, LIMITS).close()


def dialled(server):
    address = server.listener.address
    raw = socket.socket(socket.AF_UNIX if address.path else socket.AF_INET)
    raw.connect(address.path or (address.host, address.port))
    return raw


def drained(raw):
    data = b""
    try:
        while more := raw.recv(4096):
            data += more
    except ConnectionResetError:
        pass
    return data


def test_silent_strangers_neither_stay_nor_keep_others_out(tmp_path):
    limits = Limits(handshake_s=0.3, waiting_max=2)
    server = Server(Address(), limits)
    silent = [dialled(server) for _ in range(5)]
    for raw in silent:
        raw.settimeout(5)
        assert len(drained(raw)) <= 50
    connect(server.listener.address, TOKEN, limits).close()
    server.close()


def test_a_server_that_says_nothing_is_not_waited_for():
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = Address("127.0.0.1", mute.getsockname()[1])
        with pytest.raises(StoreError, match="not done within 0.3 s"):
            connect(address, TOKEN, Limits(handshake_s=0.3))


def test_nobody_listening_is_said_so(tmp_path):
    with pytest.raises(StoreError, match="no store answers at unix"):
        connect(Address("", 0, str(tmp_path / "none")), TOKEN)


@pytest.mark.parametrize("seed", range(3))
def test_fuzzed_connections_leave_the_listener_alive(server, seed):
    dice = random.Random(seed)
    for _ in range(20):
        with dialled(server) as raw:
            raw.sendall(dice.randbytes(dice.randrange(200)))
    with connect(server.listener.address, TOKEN, LIMITS) as client:
        there = server.connection()
        client.send(m.Leave(3, 4))
        assert received(there) == m.Leave(3, 4)


def test_closing_the_listener_ends_its_connections(server):
    client = connect(server.listener.address, TOKEN, LIMITS)
    server.connection()
    server.close()
    assert received(client) is None
    with pytest.raises(StoreError):
        connect(server.listener.address, TOKEN, LIMITS)


def test_loopback_unless_told_otherwise(caplog):
    with Listener(Address(), TOKEN, lambda connection: None) as listener:
        assert listener.address.host == "127.0.0.1" and listener.address.port > 0
    assert caplog.text == ""
    with Listener(parse_address("tcp://0.0.0.0:0"), TOKEN, lambda connection: None):
        assert "other hosts can connect" in caplog.text


def test_only_the_user_may_open_the_unix_socket(tmp_path):
    path = tmp_path / "s"
    with Listener(Address("", 0, str(path)), TOKEN, lambda connection: None):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(StoreError, match="cannot listen on unix"):
            Listener(Address("", 0, str(path)), TOKEN, lambda connection: None)
    assert not path.exists()


def test_a_dead_stores_socket_is_taken_over_and_other_files_are_not(tmp_path):
    path = tmp_path / "s"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    Listener(Address("", 0, str(path)), TOKEN, lambda connection: None).close()
    path.write_text("precious")
    with pytest.raises(StoreError, match="cannot listen"):
        Listener(Address("", 0, str(path)), TOKEN, lambda connection: None)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:7070", "unix:///run/store.sock", "tcp://[::1]:80"])
def test_addresses_print_as_they_are_read(text):
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text", ["", "localhost:80", "tcp://host", "tcp://host:x", "unix://", "http://a:1", "unix:///" + "a" * 200]
)
def test_bad_addresses_are_refused(text):
    with pytest.raises(UsageError):
        parse_address(text)


def test_short_tokens_are_refused():
    with pytest.raises(UsageError, match="can be guessed"):
        connect(Address(port=1), "secret")
    assert len(new_token()) == 64 and new_token() != new_token()
