"""Frames on a serial line: messages of bytes, told apart and checked. No port, no clock.

A frame is a zero, the message and its CRC-32 (IEEE 802.3, little endian) in COBS (Cheshire and Baker,
"Consistent overhead byte stuffing", 1999), and a zero. COBS leaves no zero within a frame, so whatever a line
has lost, doubled or changed, the next zero begins anew: damage costs the frames that it is in, and no others.
``firmware_tools/c/src/frame.c`` is its twin on a board.
"""

import zlib

CRC_BYTES = 4
_LONGEST_RUN = 254
"""Bytes without a zero that one code byte can stand for."""


def encode_frame(message: bytes) -> bytes:
    """Give the bytes that carry a message of at least one byte."""
    if not message:
        raise ValueError("a frame carries at least one byte")
    content = message + zlib.crc32(message).to_bytes(CRC_BYTES, "little")
    frame = bytearray(1)
    for run in content.split(b"\0"):
        whole, rest = divmod(len(run), _LONGEST_RUN)
        for start in range(0, whole * _LONGEST_RUN, _LONGEST_RUN):
            frame.append(_LONGEST_RUN + 1)
            frame += run[start : start + _LONGEST_RUN]
        frame.append(rest + 1)
        frame += run[whole * _LONGEST_RUN :]
    frame.append(0)
    return bytes(frame)


class FrameReader:
    """Takes bytes as they come, in pieces of any size; gives the messages of sound frames.

    Parameters
    ----------
    room : int
        Bytes of the longest message that is taken; memory is bounded by it.

    Attributes
    ----------
    dropped : int
        Frames that were damaged, cut off or too long.
    """

    def __init__(self, room: int) -> None:
        self.dropped = 0
        self._longest = room
        self._room = room + CRC_BYTES + (room + CRC_BYTES) // _LONGEST_RUN + 1
        self._frame = bytearray()
        self._is_too_long = False

    def feed(self, received: bytes) -> list[bytes]:
        """Give the messages that are complete with these bytes."""
        messages = []
        *ended, begun = received.split(b"\0")
        for piece in ended:
            self._take(piece)
            if self._frame:
                message = None if self._is_too_long else _decoded(bytes(self._frame))
                if message is None or len(message) > self._longest:
                    self.dropped += 1
                else:
                    messages.append(message)
            self._frame.clear()
            self._is_too_long = False
        self._take(begun)
        return messages

    def _take(self, piece: bytes) -> None:
        free = self._room - len(self._frame)
        self._is_too_long = self._is_too_long or len(piece) > free
        self._frame += piece[:free]


def _decoded(frame: bytes) -> bytes | None:
    """Give the message of what stands between two zeros; None where it is damaged."""
    content = bytearray()
    at = 0
    while at < len(frame):
        code = frame[at]
        run = frame[at + 1 : at + code]
        if len(run) != code - 1:
            return None
        content += run
        at += code
        if code <= _LONGEST_RUN and at < len(frame):
            content.append(0)
    message, crc = bytes(content[:-CRC_BYTES]), bytes(content[-CRC_BYTES:])
    return message if message and zlib.crc32(message) == int.from_bytes(crc, "little") else None
