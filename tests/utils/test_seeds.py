from optimum_ffp.utils.seeds import seed_of


def test_seed_depends_on_every_number_and_order():
    assert len({seed_of(1, 2), seed_of(2, 1), seed_of(1, 3), seed_of(1)}) == 4
    assert seed_of(3, 4) == seed_of(3, 4) and 0 <= seed_of(3, 4) < 2**63
