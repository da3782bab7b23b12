"""Records of the public data sets -> canonical conversations, one reader a form."""

from alia_ctx.data.chat.forms.registry import FORMS, form_of, read_record

__all__ = ["FORMS", "form_of", "read_record"]
