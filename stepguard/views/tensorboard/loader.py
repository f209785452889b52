from __future__ import annotations

import logging
from typing import Any

from tensorboard.plugins.base_plugin import TBLoader


class StepGuardLoader(TBLoader):  # type: ignore[misc]
    """What TensorBoard finds under its entry point: the tab, or a line in the log that says why there is none."""

    def load(self, context: Any) -> Any:
        """The plugin; None, which TensorBoard passes over, if it cannot be had."""
        # Imported here: TensorBoard dies of an import error in the module that its entry point names.
        try:
            from stepguard.views.tensorboard.plugin import StepGuardPlugin

            return StepGuardPlugin(context)
        except Exception:
            logging.getLogger("tensorboard").exception("no StepGuard tab: it could not be loaded; all else works")
            return None
