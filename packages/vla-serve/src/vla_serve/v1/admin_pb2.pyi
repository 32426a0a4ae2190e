from vla_serve.v1 import policy_pb2 as _policy_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PolicyState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POLICY_STATE_UNSPECIFIED: _ClassVar[PolicyState]
    POLICY_STATE_STANDBY: _ClassVar[PolicyState]
    POLICY_STATE_CURRENT: _ClassVar[PolicyState]
    POLICY_STATE_DRAINED: _ClassVar[PolicyState]
POLICY_STATE_UNSPECIFIED: PolicyState
POLICY_STATE_STANDBY: PolicyState
POLICY_STATE_CURRENT: PolicyState
POLICY_STATE_DRAINED: PolicyState

class PolicyStatus(_message.Message):
    __slots__ = ("revision", "state", "framework", "embodiments", "pending")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FRAMEWORK_FIELD_NUMBER: _ClassVar[int]
    EMBODIMENTS_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    revision: _policy_pb2.PolicyRevision
    state: PolicyState
    framework: str
    embodiments: _containers.RepeatedScalarFieldContainer[str]
    pending: int
    def __init__(self, revision: _Optional[_Union[_policy_pb2.PolicyRevision, _Mapping]] = ..., state: _Optional[_Union[PolicyState, str]] = ..., framework: _Optional[str] = ..., embodiments: _Optional[_Iterable[str]] = ..., pending: _Optional[int] = ...) -> None: ...

class ListPoliciesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPoliciesResponse(_message.Message):
    __slots__ = ("policies",)
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    policies: _containers.RepeatedCompositeFieldContainer[PolicyStatus]
    def __init__(self, policies: _Optional[_Iterable[_Union[PolicyStatus, _Mapping]]] = ...) -> None: ...

class LoadPolicyRequest(_message.Message):
    __slots__ = ("policy", "path", "promote")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PROMOTE_FIELD_NUMBER: _ClassVar[int]
    policy: str
    path: str
    promote: bool
    def __init__(self, policy: _Optional[str] = ..., path: _Optional[str] = ..., promote: bool = ...) -> None: ...

class LoadPolicyResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: PolicyStatus
    def __init__(self, status: _Optional[_Union[PolicyStatus, _Mapping]] = ...) -> None: ...

class PromotePolicyRequest(_message.Message):
    __slots__ = ("policy", "revision", "unload_previous")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    UNLOAD_PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    policy: str
    revision: str
    unload_previous: bool
    def __init__(self, policy: _Optional[str] = ..., revision: _Optional[str] = ..., unload_previous: bool = ...) -> None: ...

class PromotePolicyResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: PolicyStatus
    def __init__(self, status: _Optional[_Union[PolicyStatus, _Mapping]] = ...) -> None: ...

class DrainPolicyRequest(_message.Message):
    __slots__ = ("policy", "timeout_s")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    policy: str
    timeout_s: float
    def __init__(self, policy: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class DrainPolicyResponse(_message.Message):
    __slots__ = ("status", "empty")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    EMPTY_FIELD_NUMBER: _ClassVar[int]
    status: PolicyStatus
    empty: bool
    def __init__(self, status: _Optional[_Union[PolicyStatus, _Mapping]] = ..., empty: bool = ...) -> None: ...

class UnloadPolicyRequest(_message.Message):
    __slots__ = ("policy", "revision", "timeout_s")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    policy: str
    revision: str
    timeout_s: float
    def __init__(self, policy: _Optional[str] = ..., revision: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class UnloadPolicyResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
