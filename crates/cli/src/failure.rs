//! Why a command could not run: one line, what to do next, and the exit code.

use std::process::ExitCode;

use serde::{Serialize, Serializer};
use shardwright_convert::{ConvertError, Remedy};
use shardwright_format::FormatError;
use shardwright_format::shown::shown;
#[cfg(feature = "remote")]
use shardwright_remote::RemoteError;
use shardwright_runtime::RuntimeError;
use shardwright_verify::VerifyError;

use crate::say;

/// Exit code of a verification that found something.
pub const FOUND: u8 = 1;
/// Exit code of a command that could not run.
pub const COULD_NOT_RUN: u8 = 2;
/// Exit code of a command stopped by SIGINT or SIGTERM.
pub const INTERRUPTED: u8 = 130;

/// Why a command stopped without a result.
#[derive(Debug, Serialize)]
pub struct Failure {
    #[serde(rename = "error", serialize_with = "in_one_line")]
    message: String,
    help: Option<String>,
    /// What the message says, where it speaks of a file.
    #[serde(flatten)]
    refused: Option<Box<Refused>>,
    #[serde(skip)]
    code: u8,
}

/// A refused file by its parts, as programs want them.
#[derive(Debug, Serialize)]
struct Refused {
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensor: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    found: Option<String>,
}

/// What a command gives: its exit code, or why it has none.
pub type Outcome = Result<ExitCode, Failure>;

impl Failure {
    /// A command that could not run.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, refused: None, code: COULD_NOT_RUN }
    }

    /// A command that the user stopped.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self { code: INTERRUPTED, ..Self::new(message) }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// What went wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Writes it to standard error, as lines or as one JSON object, and gives the exit code.
    pub fn report(&self, json: bool) -> ExitCode {
        if json {
            say::json(self);
        } else {
            say::line(&format!("error: {}", one_line(&self.message)));
            if let Some(help) = &self.help {
                say::line(&format!("help: {}", one_line(help)));
            }
        }
        ExitCode::from(self.code)
    }
}

fn in_one_line<S: Serializer>(message: &str, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&one_line(message))
}

/// A line per failure, whatever a library or a stranger's file put into its message: line ends
/// become spaces, and what could steer a terminal is escaped.
fn one_line(message: &str) -> String {
    shortened(&shown(&message.replace('\n', " ")))
}

/// Longest run of characters without a space, and longest message, that are shown whole.
const MOST: [usize; 2] = [400, 6000];

/// A message whose quotations of the input keep a readable length: long words and then the whole
/// keep their beginning and their end.
fn shortened(line: &str) -> String {
    let words: Vec<_> = line.split(' ').map(|word| cut(word, MOST[0])).collect();
    cut(&words.join(" "), MOST[1])
}

/// `text`, or its beginning and end with the count of what is between.
pub fn cut(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.to_owned();
    }
    let (start, end) = (most / 2, most / 4);
    let first: String = text.chars().take(start).collect();
    let last: String = text.chars().skip(count - end).collect();
    format!("{first}… ({} characters) …{last}", count - start - end)
}

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let message = error.to_string();
        let failure = if is_stop(&error) { Self::interrupted(message) } else { Self::new(message) };
        let refused = format_error(&error).and_then(Refused::new).map(Box::new);
        Self { help: remedy(&error).map(str::to_owned), refused, ..failure }
    }
}

impl Refused {
    fn new(error: &FormatError) -> Option<Self> {
        let (path, tensor, why) = match error {
            FormatError::File { path, detail } => (path, None, detail),
            FormatError::Tensor { path, tensor, detail } => (path, Some(one_line(tensor)), detail),
            _ => return None,
        };
        let [expected, found] =
            [&why.expected, &why.found].map(|text| text.as_deref().map(one_line));
        let [file, what] = [&path.display().to_string(), &why.what].map(|text| one_line(text));
        Some(Self { file, tensor, what, expected, found })
    }
}

/// The refusal of a file that an error of another crate wraps.
fn format_error<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e FormatError> {
    let runtime = |error: &'e RuntimeError| match error {
        RuntimeError::Format(format) => Some(format),
        _ => None,
    };
    match (error.downcast_ref(), error.downcast_ref()) {
        (Some(ConvertError::Format(format)), _) | (_, Some(VerifyError::Format(format))) => {
            Some(format)
        }
        (Some(ConvertError::Runtime(source)), _)
        | (_, Some(VerifyError::Runtime { source, .. })) => runtime(source),
        _ => error
            .downcast_ref()
            .or_else(|| runtime(error.downcast_ref()?)),
    }
}

/// The option that helps, where there is one.
fn remedy(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    if let Some(FormatError::Unfinished { .. }) = format_error(error) {
        return Some("--resume continues it; or remove it");
    }
    if let Some(VerifyError::TokenizersDiffer(_)) = error.downcast_ref() {
        return Some("predictions are compared token for token, so both models need one tokenizer");
    }
    #[cfg(feature = "remote")]
    if let Some(error) = error.downcast_ref() {
        return access(error);
    }
    match error.downcast_ref()? {
        ConvertError::NeedsCalibration { .. } => Some("add --calibrate TEXT or --statistics FILE"),
        ConvertError::NotHeld { remedy, .. } => Some(stored_so(*remedy)),
        ConvertError::Cancelled { .. } => Some("--resume continues it"),
        ConvertError::TargetTooSmall { .. } => {
            Some("give --target-bpw or --target-size no less than that")
        }
        _ => None,
    }
}

/// Where credentials come from, where there are none or not these.
#[cfg(feature = "remote")]
fn access(error: &RemoteError) -> Option<&'static str> {
    match error {
        RemoteError::Denied { name, .. } if name.starts_with("hf://") => Some(
            "set HF_TOKEN to a token that may read it; some models ask for consent on their page first",
        ),
        RemoteError::Denied { name, .. } if name.starts_with("s3://") => {
            Some("set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION")
        }
        RemoteError::Untrusted { .. } => Some(
            "if it is yours, or a proxy's in between, set SSL_CERT_FILE to a file with the certificate that vouches for it",
        ),
        RemoteError::Offline { .. } => Some("unset it, or fetch the model first"),
        _ => None,
    }
}

/// The options of `convert` with which an export holds a tensor.
const fn stored_so(remedy: Remedy) -> &'static str {
    match remedy {
        Remedy::EngineLimits => {
            "convert with --for mlx, or let the export store it anew with --requantize"
        }
        Remedy::AffineCodes => {
            "convert with an affine recipe, such as --bits 4, or --encodings affine; or let the export store it anew with \
             --requantize"
        }
        Remedy::HalfScales => "convert with --for gguf, or with --scale-dtype f16; or --requantize",
        Remedy::SymmetricZeros => {
            "convert with --zeros symmetric; or let the export store it anew with --requantize"
        }
        Remedy::WholeZeros => {
            "convert with --for compressed-tensors, or with --zeros symmetric; or --requantize"
        }
        Remedy::Floats => {
            "convert with --for compressed-tensors, keep it as floats (see --set of `convert --help`), or let the export do so \
             with --requantize"
        }
        Remedy::PackedExperts => "convert with --for flash-moe",
        Remedy::OneEncoding => {
            "convert with one encoding for all that share the tensor (see --set of `convert --help`), experts with --experts alike"
        }
    }
}

/// Whether it is a stop by the user, which is no failure of the input.
fn is_stop(error: &(dyn std::error::Error + 'static)) -> bool {
    let convert = error.downcast_ref();
    let convert = matches!(convert, Some(ConvertError::Cancelled { .. } | ConvertError::Stopped));
    convert || matches!(error.downcast_ref(), Some(VerifyError::Cancelled))
}

/// Turns a defect of this program into one line and an exit code, in place of a backtrace.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        let place = info
            .location()
            .map_or_else(String::new, |l| format!(" at {}:{}", l.file(), l.line()));
        let payload = info.payload();
        let text = payload
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        let failure = Failure::new(format!("internal error{place}: {text}"))
            .help("this is a defect in shardwright; please report it with the command you ran");
        let _ = failure.report(false);
        std::process::exit(i32::from(COULD_NOT_RUN));
    }));
}
