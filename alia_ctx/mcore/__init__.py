"""The only package that imports Megatron-Core (and TransformerEngine, where it is installed)."""

import logging
import warnings

# Said by upstream and torch on every start, about their own code and about what a host
# does not have.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
for _category in (SyntaxWarning, FutureWarning, DeprecationWarning):
    warnings.filterwarnings(
        "ignore", category=_category, module=r"(megatron|torch|alia_ctx\.mcore)\b"
    )
warnings.filterwarnings(
    "ignore", category=UserWarning, module=r"torch\.distributed\.checkpoint\b"
)
warnings.filterwarnings(
    "ignore", message=r".*(Apex|Transformer Engine).*not installed.*"
)
warnings.filterwarnings(
    "ignore", message=r".*invalid escape sequence.*", category=SyntaxWarning
)
warnings.filterwarnings("ignore", message=r"full scope is deprecated.*")
warnings.filterwarnings("ignore", message=r".*MimoModelConfig is experimental.*")
warnings.filterwarnings(
    "ignore", message=r".*\.grad attribute of a Tensor that is not a leaf.*"
)
