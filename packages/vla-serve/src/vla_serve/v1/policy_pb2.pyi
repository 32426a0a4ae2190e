from vla_serve.v1 import specs_pb2 as _specs_pb2
from vla_serve.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PolicyInfo(_message.Message):
    __slots__ = ("name", "framework", "embodiments", "revision")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FRAMEWORK_FIELD_NUMBER: _ClassVar[int]
    EMBODIMENTS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    name: str
    framework: str
    embodiments: _containers.RepeatedScalarFieldContainer[str]
    revision: PolicyRevision
    def __init__(self, name: _Optional[str] = ..., framework: _Optional[str] = ..., embodiments: _Optional[_Iterable[str]] = ..., revision: _Optional[_Union[PolicyRevision, _Mapping]] = ...) -> None: ...

class PolicyRevision(_message.Message):
    __slots__ = ("policy", "revision", "weights_digest", "statistics_digest", "data_digest", "checkpoint")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DATA_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    policy: str
    revision: str
    weights_digest: str
    statistics_digest: str
    data_digest: str
    checkpoint: str
    def __init__(self, policy: _Optional[str] = ..., revision: _Optional[str] = ..., weights_digest: _Optional[str] = ..., statistics_digest: _Optional[str] = ..., data_digest: _Optional[str] = ..., checkpoint: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_denoise_steps", "max_in_flight", "max_batch", "max_in_flight_bytes", "body_timeout_s", "max_batch_bytes", "max_batch_items", "max_in_flight_pixels")
    MAX_DENOISE_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    BODY_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_ITEMS_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_PIXELS_FIELD_NUMBER: _ClassVar[int]
    max_denoise_steps: int
    max_in_flight: int
    max_batch: int
    max_in_flight_bytes: int
    body_timeout_s: float
    max_batch_bytes: int
    max_batch_items: int
    max_in_flight_pixels: int
    def __init__(self, max_denoise_steps: _Optional[int] = ..., max_in_flight: _Optional[int] = ..., max_batch: _Optional[int] = ..., max_in_flight_bytes: _Optional[int] = ..., body_timeout_s: _Optional[float] = ..., max_batch_bytes: _Optional[int] = ..., max_batch_items: _Optional[int] = ..., max_in_flight_pixels: _Optional[int] = ...) -> None: ...

class MadeWith(_message.Message):
    __slots__ = ("git_commit", "cpu", "gpus", "python", "packages")
    class PackagesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    GIT_COMMIT_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    PYTHON_FIELD_NUMBER: _ClassVar[int]
    PACKAGES_FIELD_NUMBER: _ClassVar[int]
    git_commit: str
    cpu: str
    gpus: _containers.RepeatedScalarFieldContainer[str]
    python: str
    packages: _containers.ScalarMap[str, str]
    def __init__(self, git_commit: _Optional[str] = ..., cpu: _Optional[str] = ..., gpus: _Optional[_Iterable[str]] = ..., python: _Optional[str] = ..., packages: _Optional[_Mapping[str, str]] = ...) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("server_version", "policies", "max_message_bytes", "max_queue", "max_sessions", "session_idle_timeout_s", "limits", "made_with")
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    SESSION_IDLE_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    MADE_WITH_FIELD_NUMBER: _ClassVar[int]
    server_version: str
    policies: _containers.RepeatedCompositeFieldContainer[PolicyInfo]
    max_message_bytes: int
    max_queue: int
    max_sessions: int
    session_idle_timeout_s: float
    limits: Limits
    made_with: MadeWith
    def __init__(self, server_version: _Optional[str] = ..., policies: _Optional[_Iterable[_Union[PolicyInfo, _Mapping]]] = ..., max_message_bytes: _Optional[int] = ..., max_queue: _Optional[int] = ..., max_sessions: _Optional[int] = ..., session_idle_timeout_s: _Optional[float] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., made_with: _Optional[_Union[MadeWith, _Mapping]] = ...) -> None: ...

class GetPolicyContractRequest(_message.Message):
    __slots__ = ("policy", "embodiment")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    EMBODIMENT_FIELD_NUMBER: _ClassVar[int]
    policy: str
    embodiment: str
    def __init__(self, policy: _Optional[str] = ..., embodiment: _Optional[str] = ...) -> None: ...

class GetPolicyContractResponse(_message.Message):
    __slots__ = ("policy", "contract")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    policy: str
    contract: _specs_pb2.RobotSpec
    def __init__(self, policy: _Optional[str] = ..., contract: _Optional[_Union[_specs_pb2.RobotSpec, _Mapping]] = ...) -> None: ...

class SentCameraInputs(_message.Message):
    __slots__ = ("cameras",)
    class CamerasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _specs_pb2.CameraInputs
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_specs_pb2.CameraInputs, _Mapping]] = ...) -> None: ...
    CAMERAS_FIELD_NUMBER: _ClassVar[int]
    cameras: _containers.MessageMap[str, _specs_pb2.CameraInputs]
    def __init__(self, cameras: _Optional[_Mapping[str, _specs_pb2.CameraInputs]] = ...) -> None: ...

class SessionConfig(_message.Message):
    __slots__ = ("policy", "embodiment", "observation_spec", "action_spec", "real_time_chunking", "camera_inputs")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    EMBODIMENT_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_SPEC_FIELD_NUMBER: _ClassVar[int]
    ACTION_SPEC_FIELD_NUMBER: _ClassVar[int]
    REAL_TIME_CHUNKING_FIELD_NUMBER: _ClassVar[int]
    CAMERA_INPUTS_FIELD_NUMBER: _ClassVar[int]
    policy: str
    embodiment: str
    observation_spec: _specs_pb2.ObservationSpec
    action_spec: _specs_pb2.ActionSpec
    real_time_chunking: bool
    camera_inputs: SentCameraInputs
    def __init__(self, policy: _Optional[str] = ..., embodiment: _Optional[str] = ..., observation_spec: _Optional[_Union[_specs_pb2.ObservationSpec, _Mapping]] = ..., action_spec: _Optional[_Union[_specs_pb2.ActionSpec, _Mapping]] = ..., real_time_chunking: bool = ..., camera_inputs: _Optional[_Union[SentCameraInputs, _Mapping]] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("config",)
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    config: SessionConfig
    def __init__(self, config: _Optional[_Union[SessionConfig, _Mapping]] = ...) -> None: ...

class RealTimeChunking(_message.Message):
    __slots__ = ("max_delay_steps", "chunks_kept")
    MAX_DELAY_STEPS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_KEPT_FIELD_NUMBER: _ClassVar[int]
    max_delay_steps: int
    chunks_kept: int
    def __init__(self, max_delay_steps: _Optional[int] = ..., chunks_kept: _Optional[int] = ...) -> None: ...

class OpenSessionResponse(_message.Message):
    __slots__ = ("session_id", "policy", "contract", "max_message_bytes", "idle_timeout_s", "real_time_chunking", "limits", "revision")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    REAL_TIME_CHUNKING_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    policy: str
    contract: _specs_pb2.RobotSpec
    max_message_bytes: int
    idle_timeout_s: float
    real_time_chunking: RealTimeChunking
    limits: Limits
    revision: PolicyRevision
    def __init__(self, session_id: _Optional[str] = ..., policy: _Optional[str] = ..., contract: _Optional[_Union[_specs_pb2.RobotSpec, _Mapping]] = ..., max_message_bytes: _Optional[int] = ..., idle_timeout_s: _Optional[float] = ..., real_time_chunking: _Optional[_Union[RealTimeChunking, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., revision: _Optional[_Union[PolicyRevision, _Mapping]] = ...) -> None: ...

class ResetSessionRequest(_message.Message):
    __slots__ = ("session_id", "instruction")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    instruction: str
    def __init__(self, session_id: _Optional[str] = ..., instruction: _Optional[str] = ...) -> None: ...

class ResetSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class CloseSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HoldSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class HoldSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PreviousChunk(_message.Message):
    __slots__ = ("chunk_id", "executed_steps", "delay_steps")
    CHUNK_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTED_STEPS_FIELD_NUMBER: _ClassVar[int]
    DELAY_STEPS_FIELD_NUMBER: _ClassVar[int]
    chunk_id: str
    executed_steps: int
    delay_steps: int
    def __init__(self, chunk_id: _Optional[str] = ..., executed_steps: _Optional[int] = ..., delay_steps: _Optional[int] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("session_id", "observation", "seed", "step", "denoise_steps", "supersedes", "previous", "view_keys")
    class ViewKeysEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DENOISE_STEPS_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDES_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    VIEW_KEYS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    observation: _types_pb2.Observation
    seed: int
    step: int
    denoise_steps: int
    supersedes: bool
    previous: PreviousChunk
    view_keys: _containers.ScalarMap[str, str]
    def __init__(self, session_id: _Optional[str] = ..., observation: _Optional[_Union[_types_pb2.Observation, _Mapping]] = ..., seed: _Optional[int] = ..., step: _Optional[int] = ..., denoise_steps: _Optional[int] = ..., supersedes: bool = ..., previous: _Optional[_Union[PreviousChunk, _Mapping]] = ..., view_keys: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ServerTimings(_message.Message):
    __slots__ = ("queue_ms", "decode_ms", "model_ms", "total_ms", "prepare_ms", "finish_ms", "batch", "queue_depth")
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    MODEL_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    PREPARE_MS_FIELD_NUMBER: _ClassVar[int]
    FINISH_MS_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    QUEUE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    decode_ms: float
    model_ms: float
    total_ms: float
    prepare_ms: float
    finish_ms: float
    batch: int
    queue_depth: int
    def __init__(self, queue_ms: _Optional[float] = ..., decode_ms: _Optional[float] = ..., model_ms: _Optional[float] = ..., total_ms: _Optional[float] = ..., prepare_ms: _Optional[float] = ..., finish_ms: _Optional[float] = ..., batch: _Optional[int] = ..., queue_depth: _Optional[int] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("actions", "timings", "seed", "chunk_id", "frozen_steps", "revision", "request_id", "notes")
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CHUNK_ID_FIELD_NUMBER: _ClassVar[int]
    FROZEN_STEPS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    actions: _types_pb2.Tensor
    timings: ServerTimings
    seed: int
    chunk_id: str
    frozen_steps: int
    revision: PolicyRevision
    request_id: str
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, actions: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., timings: _Optional[_Union[ServerTimings, _Mapping]] = ..., seed: _Optional[int] = ..., chunk_id: _Optional[str] = ..., frozen_steps: _Optional[int] = ..., revision: _Optional[_Union[PolicyRevision, _Mapping]] = ..., request_id: _Optional[str] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class CheckCompatibilityRequest(_message.Message):
    __slots__ = ("config",)
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    config: SessionConfig
    def __init__(self, config: _Optional[_Union[SessionConfig, _Mapping]] = ...) -> None: ...

class Mismatch(_message.Message):
    __slots__ = ("field", "policy", "client", "description")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    field: str
    policy: str
    client: str
    description: str
    def __init__(self, field: _Optional[str] = ..., policy: _Optional[str] = ..., client: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class CheckCompatibilityResponse(_message.Message):
    __slots__ = ("mismatches", "contract", "revision")
    MISMATCHES_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    mismatches: _containers.RepeatedCompositeFieldContainer[Mismatch]
    contract: _specs_pb2.RobotSpec
    revision: PolicyRevision
    def __init__(self, mismatches: _Optional[_Iterable[_Union[Mismatch, _Mapping]]] = ..., contract: _Optional[_Union[_specs_pb2.RobotSpec, _Mapping]] = ..., revision: _Optional[_Union[PolicyRevision, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message", "status")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    status: bytes
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., status: _Optional[bytes] = ...) -> None: ...

class PredictBatchRequest(_message.Message):
    __slots__ = ("session_id", "items")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    items: _containers.RepeatedCompositeFieldContainer[PredictRequest]
    def __init__(self, session_id: _Optional[str] = ..., items: _Optional[_Iterable[_Union[PredictRequest, _Mapping]]] = ...) -> None: ...

class PredictBatchResult(_message.Message):
    __slots__ = ("answer", "failure")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    answer: PredictResponse
    failure: Failure
    def __init__(self, answer: _Optional[_Union[PredictResponse, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class PredictBatchResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[PredictBatchResult]
    def __init__(self, results: _Optional[_Iterable[_Union[PredictBatchResult, _Mapping]]] = ...) -> None: ...

class ExecutedSteps(_message.Message):
    __slots__ = ("chunk_id", "executed_steps", "step")
    CHUNK_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTED_STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    chunk_id: str
    executed_steps: int
    step: int
    def __init__(self, chunk_id: _Optional[str] = ..., executed_steps: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class StreamActionsRequest(_message.Message):
    __slots__ = ("session_id", "request_id", "observation", "executed", "timeout_s")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    EXECUTED_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    request_id: int
    observation: PredictRequest
    executed: ExecutedSteps
    timeout_s: float
    def __init__(self, session_id: _Optional[str] = ..., request_id: _Optional[int] = ..., observation: _Optional[_Union[PredictRequest, _Mapping]] = ..., executed: _Optional[_Union[ExecutedSteps, _Mapping]] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class StreamActionsResponse(_message.Message):
    __slots__ = ("request_id", "answer", "failure")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    answer: PredictResponse
    failure: Failure
    def __init__(self, request_id: _Optional[int] = ..., answer: _Optional[_Union[PredictResponse, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...
