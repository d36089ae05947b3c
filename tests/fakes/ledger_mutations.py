"""Single changes of a ledger's bytes: bits, bytes, cuts, and entries left out, repeated and swapped."""

import random
from collections.abc import Iterator

from sottovoce.common.ledger.reader import lines_of


def mutations(data: bytes, draw: random.Random) -> Iterator[tuple[bytes, int]]:
    """Yields single changes of a ledger with the entry where each is."""
    lines = lines_of(data)
    starts = [sum(map(len, lines[:k])) for k in range(len(lines) + 1)]

    def entry_at(position: int) -> int:
        return max(k for k in range(len(lines)) if starts[k] <= position)

    while True:
        position, k = draw.randrange(len(data)), draw.randrange(len(lines))
        at = entry_at(position)
        match draw.randrange(8):
            case 0:
                yield (
                    data[:position]
                    + bytes([data[position] ^ (1 << draw.randrange(8))])
                    + data[position + 1 :],
                    at,
                )
            case 1:
                yield data[:position] + data[position + 1 :], at
            case 2:
                yield data[:position] + bytes([draw.randrange(256)]) + data[position:], at
            case 3:
                yield data[:position], at
            case 4:
                yield b"".join(lines[:k] + lines[k + 1 :]), k
            case 5:
                yield b"".join([*lines[: k + 1], lines[k], *lines[k + 1 :]]), k + 1
            case 6:
                j = draw.randrange(len(lines))
                low, high = min(j, k), max(j, k)
                if low < high:
                    swapped = [
                        *lines[:low],
                        lines[high],
                        *lines[low + 1 : high],
                        lines[low],
                        *lines[high + 1 :],
                    ]
                    yield b"".join(swapped), low
            case 7:
                end = min(len(data), position + draw.randrange(1, 2000))
                yield data[:position] + data[end:], at
