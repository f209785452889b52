"""Callbacks for the Trainer of Hugging Face: ``from stepguard.callbacks.transformers import StepGuard``."""

try:
    # Here and not where they are used, so that whoever lacks them is told what to install.
    import accelerate as _accelerate  # noqa: F401
    import transformers as _transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"stepguard.callbacks.transformers needs transformers and accelerate ({error}): "
        "pip install 'stepguard[transformers]'"
    ) from error

from stepguard.callbacks.transformers.collapse import SoftmaxCollapseMonitor
from stepguard.callbacks.transformers.perp_grad import PerpGrad
from stepguard.callbacks.transformers.step_guard import StepGuard

__all__ = ["PerpGrad", "SoftmaxCollapseMonitor", "StepGuard"]
