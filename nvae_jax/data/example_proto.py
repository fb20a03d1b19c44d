"""tf.train.Example, declared here so that TensorFlow is not needed to read it.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/example/feature.proto
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

DecodeError = message.DecodeError


def _declare() -> Any:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="nvae_jax/example.proto", package="nvae_jax")
    for name, kind in (("BytesList", field.TYPE_BYTES), ("Int64List", field.TYPE_INT64)):
        _add_field(file.message_type.add(name=name), "value", 1, field.LABEL_REPEATED, kind)
    feature = file.message_type.add(name="Feature")
    _add_field(feature, "bytes_list", 1, field.LABEL_OPTIONAL, ".nvae_jax.BytesList")
    _add_field(feature, "int64_list", 3, field.LABEL_OPTIONAL, ".nvae_jax.Int64List")
    features = file.message_type.add(name="Features")
    # A map is written as a list of its keys and values.
    item = features.nested_type.add(name="Item")
    _add_field(item, "key", 1, field.LABEL_OPTIONAL, field.TYPE_STRING)
    _add_field(item, "value", 2, field.LABEL_OPTIONAL, ".nvae_jax.Feature")
    _add_field(features, "feature", 1, field.LABEL_REPEATED, ".nvae_jax.Features.Item")
    example = file.message_type.add(name="Example")
    _add_field(example, "features", 1, field.LABEL_OPTIONAL, ".nvae_jax.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("nvae_jax.Example"))


def _add_field(owner: Any, name: str, number: int, label: int, kind: int | str) -> None:
    is_message = isinstance(kind, str)
    owner.field.add(
        name=name,
        number=number,
        label=label,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE if is_message else kind,
        type_name=kind if is_message else None,
    )


Example = _declare()
