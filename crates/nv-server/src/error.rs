//! What can go wrong with a request or with the server, and how the OpenAI API says it.

use std::fmt::Write;
use std::io;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::shortened::{MESSAGE, VALUE, shortened};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How long a client is asked to wait before it tries again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a request was refused or failed, or the server doesn't start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The body of a request is no JSON object.
    #[error("the body is no JSON object: {reason}")]
    Json {
        /// Where it ends to make sense.
        reason: String,
    },
    /// The head of a request is not as HTTP has it.
    #[error("the head of the request is malformed: {reason}")]
    Head {
        /// What HTTP calls it.
        status: StatusCode,
        /// What was expected.
        reason: &'static str,
    },
    /// A header of a request is missing, or has a value that it can't have here.
    #[error("header `{header}`: expected {expected}, found {}", shortened(found, VALUE))]
    Header {
        /// Which one.
        header: &'static str,
        /// What would have been right.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// The body of a request is longer than the server reads.
    #[error(
        "the body is longer than {max_body_bytes} bytes: send less, or raise the server's limit"
    )]
    BodyTooLarge {
        /// The limit.
        max_body_bytes: usize,
    },
    /// The body of a request breaks off.
    #[error("the body can't be read: {reason}")]
    Body {
        /// What the connection says.
        reason: String,
    },
    /// The body of a request does not come.
    #[error("the body was not there after {} s: send it faster, or raise the server's limit", limit.as_secs_f64())]
    BodyTimeout {
        /// The limit.
        limit: Duration,
    },
    /// A field of a request has a wrong type or value.
    #[error("field `{field}`: {reason}")]
    Field {
        /// Which one, with the path to it.
        field: String,
        /// What was expected, and what was found.
        reason: String,
    },
    /// A request asks for something that the API knows and this server lacks.
    #[error("field `{field}` is not supported yet: {reason}")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// What can be done instead.
        reason: &'static str,
    },
    /// Prompt and answer would be longer than a sequence can be.
    #[error(
        "field `{field}`: the prompt has {num_prompt_tokens} tokens, and {max_tokens} more are asked for: expected at most \
         {max_model_len} together"
    )]
    ContextLength {
        /// The field that asks for the tokens.
        field: &'static str,
        /// Tokens of the prompt.
        num_prompt_tokens: usize,
        /// Tokens of the answer, at most.
        max_tokens: usize,
        /// Tokens of both, at most.
        max_model_len: usize,
    },
    /// A prompt leaves no room for an answer.
    #[error(
        "field `{field}`: the prompt has {num_prompt_tokens} tokens: expected less than {max_model_len}, so that an \
         answer fits"
    )]
    PromptLength {
        /// The field that holds the prompt.
        field: &'static str,
        /// Tokens of the prompt.
        num_prompt_tokens: usize,
        /// Tokens of prompt and answer, at most.
        max_model_len: usize,
    },
    /// A request names a model that isn't served.
    #[error("the model `{}` does not exist: this server has {served}", shortened(model, VALUE))]
    UnknownModel {
        /// What was asked for.
        model: String,
        /// What there is.
        served: String,
    },
    /// A request comes without the key that the server asks for.
    #[error("no valid API key: expected the header `authorization: Bearer KEY`")]
    Unauthorized,
    /// A path names something by what is no text.
    #[error("the path {} is no UTF-8 when its escapes are decoded", shortened(path, VALUE))]
    Path {
        /// The path, as it came.
        path: String,
    },
    /// There is nothing under the path.
    #[error("there is nothing at {}: see /openapi.json", shortened(path, VALUE))]
    NotFound {
        /// The path.
        path: String,
    },
    /// The path takes other methods.
    #[error(
        "{} does not take {}: see /openapi.json",
        shortened(path, VALUE),
        shortened(method, VALUE)
    )]
    Method {
        /// The method.
        method: String,
        /// The path.
        path: String,
    },
    /// As many requests run and wait as may.
    #[error("{num_sequences} sequences run or wait already: try again later")]
    Overloaded {
        /// How many may.
        num_sequences: usize,
    },
    /// The server finishes what it has and takes nothing new.
    #[error("the server is shutting down")]
    Draining,
    /// A request took longer than the server lets it.
    #[error("the request was not done after {} s", limit.as_secs_f64())]
    Timeout {
        /// The limit.
        limit: Duration,
    },
    /// The engine refused a request or failed on it.
    #[error(transparent)]
    Engine(#[from] nv_engine::Error),
    /// The text of a request could not be processed.
    #[error(transparent)]
    Text(#[from] nv_text::Error),
    /// A part of the server panicked.
    #[error("the server panicked")]
    Panic,
    /// A setting of the server has a value that it can't have.
    #[error("setting `{setting}`: expected {expected}, found {found}")]
    Setting {
        /// The setting, as [`ServerConfig`](crate::ServerConfig) names it.
        setting: &'static str,
        /// What would have been right.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// The address can't be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Host and port.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// The system refuses what a server needs: threads, signals, a socket.
    #[error("cannot serve")]
    Serve {
        /// What the system says.
        source: io::Error,
    },
}

/// What HTTP and the OpenAI API say of an error.
struct Meaning {
    status: StatusCode,
    kind: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

impl Meaning {
    fn new(status: StatusCode, kind: &'static str, param: Option<String>) -> Self {
        Self { status, kind, param, code: None }
    }

    fn invalid(param: Option<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", param)
    }

    fn invalid_as(status: StatusCode) -> Self {
        Self { status, ..Self::invalid(None) }
    }

    fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    fn server(status: StatusCode) -> Self {
        Self::new(status, "server_error", None)
    }
}

impl Error {
    /// A field whose value isn't what was expected.
    pub(crate) fn field(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Field { field: field.into(), reason: reason.into() }
    }

    fn meaning(&self) -> Meaning {
        use nv_engine::Error as Engine;
        use nv_text::Error as Text;

        match self {
            // What every token is ruled out by is the request; so is what is too complex to follow.
            Self::Json { .. }
            | Self::Body { .. }
            | Self::Path { .. }
            | Self::Header { header: "host", .. }
            | Self::Engine(Engine::NoChoice { .. } | Engine::Constraint { .. }) => {
                Meaning::invalid(None)
            }
            Self::Head { status, .. } => Meaning::invalid_as(*status),
            Self::Header { .. } => Meaning::invalid_as(StatusCode::UNSUPPORTED_MEDIA_TYPE),
            Self::BodyTooLarge { .. } => Meaning::invalid_as(StatusCode::PAYLOAD_TOO_LARGE),
            Self::BodyTimeout { .. } => Meaning::invalid_as(StatusCode::REQUEST_TIMEOUT),
            Self::Field { field, .. } | Self::Text(Text::Field { field, .. }) => {
                Meaning::invalid(Some(field.clone()))
            }
            Self::Unsupported { field, .. } => {
                Meaning::invalid(Some((*field).to_owned())).code("unsupported_parameter")
            }
            Self::ContextLength { field, .. } | Self::PromptLength { field, .. } => {
                Meaning::invalid(Some((*field).to_owned())).code("context_length_exceeded")
            }
            Self::UnknownModel { .. } => Meaning {
                param: Some("model".to_owned()),
                ..Meaning::invalid_as(StatusCode::NOT_FOUND).code("model_not_found")
            },
            Self::Unauthorized => {
                Meaning::invalid_as(StatusCode::UNAUTHORIZED).code("invalid_api_key")
            }
            Self::NotFound { .. } => Meaning::invalid_as(StatusCode::NOT_FOUND),
            Self::Method { .. } => Meaning::invalid_as(StatusCode::METHOD_NOT_ALLOWED),
            Self::Overloaded { .. } | Self::Text(Text::Busy) => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                Meaning::new(status, "rate_limit_error", None).code("rate_limit_exceeded")
            }
            Self::Draining | Self::Engine(Engine::Stopped) => {
                Meaning::server(StatusCode::SERVICE_UNAVAILABLE)
            }
            Self::Timeout { .. } => {
                Meaning::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", None).code("timeout")
            }
            Self::Engine(Engine::SamplingParameter { parameter, .. }) => {
                Meaning::invalid(Some((*parameter).to_owned()))
            }
            Self::Engine(Engine::EmptyPrompt | Engine::TokenId { .. }) => {
                Meaning::invalid(Some("prompt".to_owned()))
            }
            Self::Engine(Engine::RequestTooLong { .. }) => {
                Meaning::invalid(Some("max_tokens".to_owned())).code("context_length_exceeded")
            }
            Self::Text(Text::Refused { .. } | Text::Render { .. }) => {
                Meaning::invalid(Some("messages".to_owned()))
            }
            Self::Engine(_)
            | Self::Text(_)
            | Self::Panic
            | Self::Setting { .. }
            | Self::Listen { .. }
            | Self::Serve { .. } => Meaning::server(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    /// The error in the OpenAI API's form, which streams use too. Logs what a client isn't told.
    pub(crate) fn to_json(&self) -> Value {
        let Meaning { status, kind, param, code } = self.meaning();
        let text = self.with_causes();
        let text = shortened(&text, MESSAGE);
        let message = if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(error = &*text, "request failed");
            "the server failed on the request; its log says more, under the request's id"
        } else {
            &text
        };
        let param = param.as_deref().map(|param| shortened(param, VALUE));
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }

    fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        text
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = self.meaning().status;
        let mut response = (status, Json(self.to_json())).into_response();
        let headers = response.headers_mut();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER.as_secs()));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
