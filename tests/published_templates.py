"""Score templates in every dialect in which model cards and vLLM's examples publish them, and what they render.

The prompts are facts of the models. `{query}`, `{document}` and `{instruction}` stand for the contents.
"""
# ruff: noqa: ISC004

QUERY_BY_ROLE = '{{ (messages | selectattr("role", "eq", "query") | first).content }}'
DOCUMENT_BY_ROLE = '{{ (messages | selectattr("role", "eq", "document") | first).content }}'

QWEN3_SYSTEM = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
MXBAI_SYSTEM = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n"
)
MXBAI_TASK = (
    "\nYou are a search relevance expert who evaluates how well documents match search queries. For each "
    "query-document pair, carefully analyze the semantic relationship between them, then provide your binary relevance "
    "judgment (0 for not relevant, 1 for relevant).\nRelevance:<|im_end|>\n<|im_start|>assistant"
)
GEMMA_TASK = (
    "\nGiven a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)

# name -> (source, prompt without an instruction, prompt with one; None if it takes none)
PUBLISHED: dict[str, tuple[str, str, str | None]] = {
    # A file, so that its final newline is lost, as upstream's is.
    "qwen3_by_role": (
        QWEN3_SYSTEM
        + '<Instruct>: {{ messages | selectattr("role", "eq", "system") | map(attribute="content") | first | '
        'default("Given a web search query, retrieve relevant passages that answer the query") }}\n'
        '<Query>: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}\n'
        '<Document>: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}'
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        QWEN3_SYSTEM
        + "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query>: {query}\n"
        "<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n",
        QWEN3_SYSTEM + "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n",
    ),
    "qwen3_by_index": (
        QWEN3_SYSTEM + '<Instruct>: {{ instruction | default("Retrieve") }}\n<Query>: {{ messages[0]["content"] }}\n'
        '<Document>: {{ messages[1]["content"] }}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>{{ "\\n\\n" }}',
        QWEN3_SYSTEM + "<Instruct>: Retrieve\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        QWEN3_SYSTEM + "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    "mxbai": (
        MXBAI_SYSTEM
        + "{% if prompt is defined %}instruction: {{ prompt }}\n{% endif %}"
        + f"query: {QUERY_BY_ROLE}\ndocument: {DOCUMENT_BY_ROLE}"
        + MXBAI_TASK
        + "\n",
        MXBAI_SYSTEM + "query: {query}\ndocument: {document}" + MXBAI_TASK,
        MXBAI_SYSTEM + "instruction: {instruction}\nquery: {query}\ndocument: {document}" + MXBAI_TASK,
    ),
    "bge_gemma": (
        f"A: {QUERY_BY_ROLE}\nB: {DOCUMENT_BY_ROLE}" + GEMMA_TASK,
        "A: {query}\nB: {document}" + GEMMA_TASK,
        None,
    ),
    "nemotron": (
        f'question:{QUERY_BY_ROLE} {{{{ "\\n" }}}} {{{{ "\\n" }}}} passage:{DOCUMENT_BY_ROLE}',
        "question:{query} \n \n passage:{document}",
        None,
    ),
    "zerank": (
        '{%- for message in messages -%}\n{%- if message["role"] == "query" -%}\n'
        '{{ "<|im_start|>system\\n" + message["content"] + "<|im_end|>\\n" }}\n'
        '{%- elif message["role"] == "document" -%}\n'
        '{{ "<|im_start|>user\\n" + message["content"] + "<|im_end|>\\n" }}\n'
        '{%- endif -%}\n{%- endfor -%}\n{{ "<|im_start|>assistant\\n" }}',
        "<|im_start|>system\n{query}<|im_end|>\n<|im_start|>user\n{document}<|im_end|>\n<|im_start|>assistant\n",
        None,
    ),
    "ctxl_document_first": (
        "{% set doc = messages | selectattr('role', 'equalto', 'document') | list | last %}\n"
        "Check whether a given document contains information helpful to answer the query.\n"
        "<Document> {{ doc['content'] }}\n<Query> {{ query }}{% if instruction %} {{ instruction }}{% endif %} ??",
        "Check whether a given document contains information helpful to answer the query.\n"
        "<Document> {document}\n<Query> {query} ??",
        "Check whether a given document contains information helpful to answer the query.\n"
        "<Document> {document}\n<Query> {query} {instruction} ??",
    ),
    "bos_and_trim": (
        "{{ bos_token }}{{ messages[0].content | trim }}{{ eos_token }}{{- messages[1].content | trim -}}   !",
        "<|begin_of_text|>{query}<|eot_id|>{document}!",
        None,
    ),
}
