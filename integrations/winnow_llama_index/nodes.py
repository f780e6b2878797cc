"""What the reranker reads of a node, and metadata of a node that no model reads."""

from collections.abc import Mapping
from typing import Any

from llama_index.core.schema import BaseNode, ImageNode, MediaResource, MetadataMode, Node

from winnow import Document


def document_of(node: BaseNode, mode: MetadataMode) -> str | Document:
    """The text of a node behind the metadata that `mode` shows, together with its image or video if it has one.

    Not from `get_content_blocks`: for an `ImageNode` that drops the caption, and fetches web addresses on the spot.
    """
    text = node.get_content(metadata_mode=mode)  # not .text, which some kinds of nodes do not have
    image = _image_of(node)
    video = _file_of(node.video_resource) if isinstance(node, Node) else None
    if image is None and video is None:
        # An ImageNode without its image still has metadata, but a file name alone says nothing about relevance.
        return "" if isinstance(node, ImageNode) and not node.text.strip() else text
    # A Node without a text writes no metadata either, a TextNode or ImageNode does.
    return Document(text=text or node.get_metadata_str(mode) or None, image=image, video=video)


def _image_of(node: BaseNode) -> str | None:
    """A data URI, a path or an address, in the order in which LlamaIndex itself looks for them."""
    if isinstance(node, ImageNode):
        return _data_uri(node.image, node.image_mimetype) or node.image_path or node.image_url or None
    return _file_of(node.image_resource) if isinstance(node, Node) else None


def _file_of(resource: MediaResource | None) -> str | None:
    if resource is None:
        return None
    if resource.data:  # base64, also where bytes were given
        return _data_uri(resource.data.decode("ascii"), resource.mimetype)
    if resource.path is not None:
        return str(resource.path)
    return None if resource.url is None else str(resource.url)


def _data_uri(image: str | None, mimetype: str | None) -> str | None:
    if not image or image.startswith("data:"):
        return image or None
    # The type is a label only: whoever opens an image looks at its first bytes.
    return f"data:{mimetype or 'image/png'};base64,{image}"


def with_hidden_metadata(node: BaseNode, added: Mapping[str, Any]) -> BaseNode:
    """A copy of the node with more metadata, which neither the LLM nor an embedding model nor a reranker reads."""
    if not added:
        return node
    return node.model_copy(
        update={
            "metadata": {**node.metadata, **added},
            "excluded_embed_metadata_keys": [*dict.fromkeys([*node.excluded_embed_metadata_keys, *added])],
            "excluded_llm_metadata_keys": [*dict.fromkeys([*node.excluded_llm_metadata_keys, *added])],
        }
    )
