"""Deltas from and to the formats of others: adapters of PEFT, summaries of selective-optimizers. See docs/peft.md."""

from selective_peft.shira_export import Exported, export_shira
from selective_peft.shira_import import import_shira
from selective_peft.summary_import import import_summary

__all__ = ["Exported", "export_shira", "import_shira", "import_summary"]
