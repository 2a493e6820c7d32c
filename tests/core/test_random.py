import numpy as np
import pytest

from dphpc.core.random import Stream, generator, normals, philox


@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [  # Known answers of Random123 1.09 (kat_vectors, philox4x32 10).
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, int], wanted: tuple[int, ...]
) -> None:
    words = philox(tuple(np.array([c], np.uint64) for c in counter), key)
    assert tuple(int(w[0]) for w in words) == wanted


def test_a_number_depends_on_its_atom_alone() -> None:
    ids = np.arange(1, 1001)
    all_of_them = normals(7, Stream.LANGEVIN, 12, ids)
    some = np.array([900, 3, 77])
    assert np.array_equal(normals(7, Stream.LANGEVIN, 12, some), all_of_them[some - 1])


def test_seed_stream_step_and_id_all_matter() -> None:
    ids = np.array([5])
    variants = [  # also beyond 32 bits
        normals(1, Stream.LANGEVIN, 1, ids), normals(2, Stream.LANGEVIN, 1, ids), normals(1, Stream.VELOCITIES, 1, ids),
        normals(1, Stream.LANGEVIN, 2, ids), normals(1, Stream.LANGEVIN, 1 + 2**32, ids),
        normals(1, Stream.LANGEVIN, 1, ids + 2**32), normals(1 + 2**32, Stream.LANGEVIN, 1, ids),
    ]  # fmt: skip
    assert len(np.unique(np.round(np.concatenate(variants), 12))) == 3 * len(variants)


def test_normals_are_normal() -> None:
    x = normals(3, Stream.LANGEVIN, 0, np.arange(200_000))
    n = len(x)
    # Five standard errors of mean, variance, kurtosis and correlations.
    assert np.abs(x.mean(axis=0)).max() < 5 / np.sqrt(n)
    assert np.abs(x.var(axis=0) - 1).max() < 5 * np.sqrt(2 / n)
    assert np.abs((x**4).mean(axis=0) - 3).max() < 5 * np.sqrt(96 / n)
    off_diagonal = np.corrcoef(x.T) - np.eye(3)
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(n)
    assert abs(np.corrcoef(x[:-1, 0], x[1:, 0])[0, 1]) < 5 / np.sqrt(n), "neighboring ids are independent"


def test_the_generator_follows_the_step() -> None:
    a, b = generator(1, Stream.BUSSI, 5).random(), generator(1, Stream.BUSSI, 6).random()
    assert a == generator(1, Stream.BUSSI, 5).random()
    assert a != b
