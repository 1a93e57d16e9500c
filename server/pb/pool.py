"""The descriptor pool that all generated modules of this package register in; see protos/generate.py."""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
