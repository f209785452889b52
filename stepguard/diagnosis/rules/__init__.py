"""What may have brought a step beyond its target, by what was measured at it and before; the first that holds."""

from stepguard.diagnosis.rules.batch import large_input, large_loss, other_inputs, other_size, stands_out, wrong_labels
from stepguard.diagnosis.rules.found import Found, Rule
from stepguard.diagnosis.rules.numbers import not_finite
from stepguard.diagnosis.rules.optimizer import changed_settings, long_way, other_state
from stepguard.diagnosis.rules.rate import from_the_start, rate
from stepguard.diagnosis.rules.rest import nothing_changed, sensitive
from stepguard.diagnosis.rules.resumed import resumed
from stepguard.diagnosis.rules.weights import along_themselves, changed_from_outside

RULES: tuple[Rule, ...] = (
    not_finite,
    rate,
    large_input,
    other_size,
    other_inputs,
    stands_out,
    changed_from_outside,
    changed_settings,
    resumed,
    large_loss,
    wrong_labels,
    along_themselves,
    other_state,
    long_way,
    from_the_start,
    nothing_changed,
    sensitive,
)

__all__ = ["RULES", "Found", "Rule"]
