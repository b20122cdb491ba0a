"""Claims as data: those of the papers, a user's own, and one clear line for what is wrong in them."""

import pytest
from consistency import config
from consistency.config.claims import CLAIMS, METRICS, Claim
from consistency.config.registry import BUILT_INS
from consistency.errors import ConfigError
from helpers import BOTH, registry_of_metrics

OWN = {"ours": "direct", "other": "cm", "metric": "frechet_distance", "reference": "data", "direction": "below"}
GAP = {
    "ours": "cd",
    "other": "cd",
    "metric": "loss@steps=1280",
    "reference": {"ours": "ct independent", "other": "cd"},
    "direction": "above",
}


def load(*claims, preset="digits", extra_metrics=()):
    registry = registry_of_metrics(*extra_metrics) if extra_metrics else BUILT_INS
    runs = BOTH if preset == "digits" else {}
    return config.load_experiment(preset, runs | {"claims": list(claims)}, registry=registry).claims


def test_the_papers_claims():
    assert list(CLAIMS) == ["A1", "A2", "A3", "B1", "B2", "B3", "B4"]
    assert {name: len(claim.quantities) for name, claim in CLAIMS.items()} == {
        **{"A1": 2, "A2": 9, "A3": 11},
        **{"B1": 2, "B2": 8, "B3": 4, "B4": 18},
    }
    assert [name for name, claim in CLAIMS.items() if claim.universal] == ["A3"]
    labels = {quantity.label for claim in CLAIMS.values() for quantity in claim.quantities}
    assert {
        "ODE error to truth, direct/cm < 1",
        "CLIP score, direct/cm < 1",
        "Fréchet distance to data at 0.125 of training, ct-gc1/ct-ic < 1",
        "Velocity gap (independent), 1,280 steps/320 steps > 0.5",
        "Velocity gap (independent), 1,280 steps/limit ≈ 1",
        "Variance of the velocity, generator induced/optimal transport < 1",
        "Variance of the velocity at the largest σ, generator induced exact/independent < 1",
    } <= labels


@pytest.mark.parametrize("name", CLAIMS)
def test_the_papers_claims_compare_metrics_with_their_references(name):
    for quantity in CLAIMS[name].quantities:
        for side in quantity.sides:
            metric = METRICS[side.base]
            assert side.reference in metric.references
            assert side.point[0] in ("", *metric.points)


def test_names_and_mappings_give_claims_of_one_form():
    several = {"name": "both", "sentence": "Direct CMs win twice.", "quantities": [OWN, OWN | {"metric": "recall"}]}
    built_in, own, both = load("A1", OWN, several)
    assert built_in is CLAIMS["A1"]
    assert own.quantities == [own]
    assert own.sampling_steps is None
    assert isinstance(both, Claim)
    assert [quantity.metric for quantity in both.quantities] == ["frechet_distance", "recall"]
    assert load(OWN | {"sampling_steps": 4})[0].sampling_steps == [4]
    early = {"ours": "ct-gc", "other": "ct-ic", "metric": "recall", "reference": "data", "direction": "above"}
    [at] = load(early | {"metric": "frechet_distance@budget=0.5"})
    assert at.name == "ct-gc-ct-ic-frechet_distance-budget-0.5-data"
    claims = [built_in, own, both, at]
    assert load(*(claim.model_dump() for claim in claims)) == claims


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        (
            OWN | {"ours": "direkt"},
            "claims.0.ours: unknown 'direkt'; allowed: cm, direct, ct-ic, ct-ot, ct-gc; did you",
        ),
        (OWN | {"other": "mixed"}, "claims.0.other: unknown 'mixed'; allowed: cm, direct, "),
        (OWN | {"other": "direct"}, "claims.0: {'ours': 'direct', "),
        (OWN | {"metric": "frechet"}, "claims.0.metric: unknown 'frechet'; allowed: ode_error, frechet_distance, "),
        (OWN | {"metric": "frechet distance"}, "claims.0.metric: 'frechet distance' is not allowed"),
        (OWN | {"metric": "brightness"}, "claims.0.metric: unknown 'brightness'"),
        (OWN | {"metric": "recall@budget=0.5"}, "claims.0.metric: unknown 'recall@budget=…'; allowed: recall"),
        (
            OWN | {"metric": "wasserstein"},
            "claims.0.metric: wasserstein is not measured here; allowed with data.kind mi",
        ),
        (
            OWN | {"metric": "frechet_distance@budget=0.5"},
            "not measured here; allowed with methods that learn from pairs",
        ),
        (
            OWN | {"ours": "ct-ic", "other": "ct-ot", "metric": "frechet_distance@budget=0.3"},
            "claims.0 needs 0.3 in consi",
        ),
        (
            OWN | {"ours": "ct-ic", "reference": "teacher"},
            "not measured here; allowed with methods that learn from tar",
        ),
        (
            OWN | {"reference": "dat"},
            "claims.0.reference: unknown 'dat'; allowed: teacher, teacher, other noises, data; did you mean 'data'?",
        ),
        (OWN | {"reference": {"ours": "data"}}, "claims.0.reference.other: required key is missing"),
        (
            OWN | {"reference": {"ours": "data", "othr": "teacher"}},
            "claims.0.reference.othr: unknown key; allowed here: ",
        ),
        (OWN | {"metric": {"ours": "recall"}}, "claims.0.metric.other: required key is missing"),
        (
            OWN | {"metric": {"ours": "recall", "other": "recal"}},
            "claims.0.metric: unknown 'recal'; allowed: ode_error, ",
        ),
        (OWN | {"bound": 0}, "claims.0.bound: 0 is not allowed"),
        (OWN | {"margin": -0.1}, "claims.0.margin: -0.1 is not allowed"),
        (OWN | {"reference": 3}, "claims.0.reference: 3 is not allowed"),
        (
            OWN | {"direction": "belo"},
            "claims.0.direction: 'belo' is not allowed; allowed: 'below', 'above' or 'equal'; did",
        ),
        (
            OWN | {"directon": "below"},
            "claims.0.directon: unknown key; allowed here: paper, universal, sampling_steps, our",
        ),
        ({key: OWN[key] for key in list(OWN)[1:]}, "claims.0.ours: required key is missing"),
        (OWN | {"without": "dinov2"}, "claims.0.without: unknown 'dinov2'; allowed: digits-classifier"),
        (OWN | {"metric": "mode_distance"}, "mode_distance is not measured here; allowed with data.kind mixture"),
        (OWN | {"extractor": "dinov2"}, "claims.0.extractor: unknown 'dinov2'; allowed: digits-classifier"),
        (
            OWN | {"metric": "ode_error", "reference": "teacher", "extractor": "pixels"},
            "claims.0.extractor: ode_error has",
        ),
        (
            OWN | {"sampling_steps": [1, 3]},
            "claims.0.sampling_steps: 3; allowed: of evaluation.sampling_steps, [1, 2, 4",
        ),
        (OWN | {"name": "A1"}, "claims.0.name: 'A1' is a built-in claim's; choose another"),
        (OWN | {"name": "=1+1"}, "claims.0.name: '=1+1' is not allowed"),
        (OWN | {"sentence": "two\nlines"}, "claims.0.sentence: 'two\\nlines' is not allowed; allowed: one line"),
        (
            {"name": "x", "sentence": "x", "quantities": [OWN, OWN | {"other": "x"}]},
            "claims.0.quantities.1.other: unknow",
        ),
        (
            {"name": "x", "sentence": "x", "quantities": [OWN | {"a": 1}]},
            "quantities.0.a: unknown key; allowed here: ours,",
        ),
        ({"name": "x", "sentence": "x", "quantities": []}, "claims.0.quantities: [] is not allowed"),
        (3, "claims.0: 3 is not allowed; allowed: A1, A2, A3, B1, B2, B3, B4, or a mapping"),
    ],
)
def test_a_bad_claim_is_one_clear_line(claim, expected):
    with pytest.raises(ConfigError) as caught:
        load(claim)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("digits: ")
    assert expected in message


def test_a_claim_about_couplings():
    [claim] = load(GAP, preset="gaussians-modes")
    assert claim.label == "Squared loss at 1,280 steps, ct independent/cd > 1"
    assert claim.names == ("ct independent", "cd")
    with pytest.raises(
        ConfigError, match=r"claims\.0 needs cd in analysis\.coupling_methods and 77 in analysis\.steps"
    ):
        load(GAP | {"metric": "loss@steps=77"}, preset="gaussians-modes")
    with pytest.raises(ConfigError, match=r"unknown 'cd'; allowed: cm, direct"):
        load(GAP)


def test_each_side_may_have_a_metric_of_its_own():
    gap = GAP | {"metric": {"ours": "velocity_gap@steps=1280", "other": "velocity_gap@limit"}, "name": "stays"}
    gap |= {"reference": "independent", "direction": "equal", "margin": 0.25}
    [claim] = load(gap, preset="gaussians-modes")
    assert claim.label == "Velocity gap (independent), 1,280 steps/limit ≈ 1"
    assert claim.names == ("1,280 steps", "limit")
    assert [side.metric for side in claim.sides] == ["velocity_gap@steps=1280", "velocity_gap@limit"]
    assert load(claim.model_dump(), preset="gaussians-modes") == [claim]
    for metric, expected in (
        ("velocity_gap@steps=77", r"claims\.0 needs cd in analysis\.coupling_methods and 77 in analysis\.steps"),
        ("transport_cost@limit", r"claims\.0\.metric: unknown 'transport_cost@limit'; allowed: transport_cost;"),
    ):
        with pytest.raises(ConfigError, match=expected):
            load(gap | {"metric": gap["metric"] | {"other": metric}}, preset="gaussians-modes")


def test_two_claims_of_one_name_in_an_experiment():
    with pytest.raises(ConfigError, match="claims: direct-cm-frechet_distance-data is given twice"):
        load(OWN, OWN | {"direction": "above"})
    assert len(load(OWN, OWN | {"direction": "above", "name": "worse"})) == 2


def test_claims_of_one_name_say_the_same_in_every_experiment():
    def experiments(**change):
        own = OWN | {"name": "mine"}
        overrides = {"digits": {"claims": [own]}, "fashion": {"claims": [own | change]}}
        return config.load({"experiments": ["digits", "fashion"], "overrides": overrides})[1]

    assert [experiment.claims[0].name for experiment in experiments().values()] == ["mine", "mine"]
    with pytest.raises(ConfigError, match=r"^fashion: claims\.0\.name: 'mine' is another claim in digits; rename one$"):
        experiments(direction="above")


def test_a_metric_of_the_users_own():
    own = OWN | {"metric": "brightness", "reference": "none"}
    [claim] = load(own, extra_metrics=["brightness"])
    assert claim.label == "brightness, direct/cm < 1"
    with pytest.raises(ConfigError, match="allowed: ode_error, .*, brightness; did you mean 'brightness'"):
        load(own | {"metric": "brigtness"}, extra_metrics=["brightness"])


def test_methods_without_a_condition_or_steps_in_common():
    with pytest.raises(ConfigError, match=r"^digits: claims\.0: cm and ct-gc have no condition in common; "):
        load(OWN | {"ours": "ct-gc"})
    methods = {"late": {"objective": "direct", "least_steps": 2}}
    for claim, allowed in ((OWN | {"ours": "late"}, 2), (OWN | {"ours": "late", "sampling_steps": 1}, 2)):
        with pytest.raises(
            ConfigError, match=rf"claims\.0\.sampling_steps: cm and late .* in \[1\]; allowed: {allowed}"
        ):
            config.load_experiment("digits", {"claims": [claim], "methods": methods})
    later = OWN | {"ours": "late", "sampling_steps": [1, 2]}
    assert config.load_experiment("digits", {"claims": [later], "methods": methods}).claims
