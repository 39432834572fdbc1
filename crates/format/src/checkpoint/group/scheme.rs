//! The scheme that a configuration names.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::bitnet::{self, BitNet};
use super::compressed::{self, Compressed};
use super::fp8::Fp8;
use super::ignore::Ignore;
use super::mlx::{self, Mlx};
use super::setting::shown;
use super::transposed::{self, Transposed};
use super::{Grouping, modelopt, mxfp4, quark};
use crate::checkpoint::files::{Files, StoredTensor};
use crate::error::{FormatError, Result};
use crate::io::{CONFIG_LIMIT, read_limited};
use crate::refusal::{Refusal, mismatch};

/// A checkpoint's scheme.
pub(super) struct Scheme {
    /// Its name.
    pub(super) method: String,
    /// What it leaves out.
    pub(super) ignore: Ignore,
    kind: Kind,
}

enum Kind {
    Fp8(Fp8),
    ModelOpt,
    Mxfp4,
    Compressed(Compressed),
    Mlx(Mlx),
    Transposed(Transposed),
    BitNet(BitNet),
}

/// The keys, of `config.json` or its `text_config`, that may describe a scheme.
pub const QUANTIZATION_KEYS: &[&str] = &["quantization_config", "compression_config", MLX_KEY];
/// The one that mlx-lm reads first: beside it may lie what the model was converted from was quantized by.
const MLX_KEY: &str = "quantization";

/// The methods that are known.
const METHODS: &[&str] = &[
    "fp8",
    "fbgemm_fp8",
    "modelopt",
    "quark",
    "mxfp4",
    "compressed-tensors",
    "gptq",
    "awq",
    AUTO_ROUND,
    "bitnet",
];

/// The file that programs for GPTQ write beside `config.json`.
const QUANTIZE_CONFIG: &str = "quantize_config.json";
/// Files beside `config.json` that describe a scheme where it does not: name, member, method where it
/// names none.
const BESIDE: &[(&str, &str, &str)] = &[
    ("hf_quant_config.json", "/quantization", "modelopt"),
    (QUANTIZE_CONFIG, "", "gptq"),
    ("quant_config.json", "", "awq"),
];
/// What the names of all `AutoRound`'s methods have: it wrote `intel/auto-round` before.
const AUTO_ROUND: &str = "auto-round";

/// Whether a file of this name says how weights are quantized, and nothing else.
pub fn describes_quantization(name: &str) -> bool {
    BESIDE.iter().any(|(file, ..)| *file == name)
}

/// A description with the method that its tensors show, where it names none: `AutoGPTQ` and `AutoAWQ` wrote such;
/// of `ModelOpt` the one that its own file would have.
fn named<'a>(files: &Files, config: &'a Value) -> Cow<'a, Value> {
    let codes = || files.stored.keys().any(|name| name.ends_with(".qweight"));
    let config = modelopt::described(config);
    let unnamed = config.is_object() && config.get("quant_method").is_none_or(Value::is_null);
    if !unnamed || !codes() {
        return Cow::Borrowed(config);
    }
    let awq = ["zero_point", "w_bit"]
        .iter()
        .any(|key| config.get(key).is_some());
    let mut config = config.clone();
    config["quant_method"] = json!(if awq { "awq" } else { "gptq" });
    Cow::Owned(config)
}

/// Where `config.json` describes the scheme, and how: of several by the first key, unless the tensors are MLX's.
fn described(files: &Files) -> Option<(String, &Value)> {
    let config = &files.config;
    let objects = [("", Some(config)), ("text_config.", config.get("text_config"))];
    let found = objects.into_iter().flat_map(|(place, object)| {
        let value = move |key| object?.get(key).filter(|value| !value.is_null());
        let keys = QUANTIZATION_KEYS.iter();
        keys.filter_map(move |key| Some((place, *key, value(key)?)))
    });
    let found: Vec<_> = found.collect();
    let own = found.iter().find(|(_, key, _)| *key == MLX_KEY);
    let own = own.filter(|_| mlx::shows(files));
    let (place, key, value) = own.or_else(|| found.first())?;
    Some((format!("{place}{key}"), value))
}

impl Scheme {
    /// The scheme that `config.json` describes.
    ///
    /// # Errors
    /// One that is not known, or parameters that it cannot have.
    pub(super) fn new(files: &Files) -> Result<Option<Self>> {
        let Some((place, config)) = described(files) else { return Self::beside(files) };
        let path: &Path = &files.config_path;
        let refuse =
            |detail: Refusal| FormatError::file(path, detail.at(format_args!("`{place}`")));
        let scheme = Self::parse(&named(files, config)).map_err(refuse)?;
        scheme.check_beside(files)?;
        Ok(Some(scheme))
    }

    /// Refuses another form of GPTQ in the file beside: of the two descriptions programs read either.
    fn check_beside(&self, files: &Files) -> Result<()> {
        let Kind::Transposed(transposed) = &self.kind else { return Ok(()) };
        let path = files.root.join(QUANTIZE_CONFIG);
        let text = read_limited(&path, CONFIG_LIMIT)?.unwrap_or_default();
        // What is no JSON describes nothing.
        let beside = serde_json::from_slice(&text).unwrap_or_default();
        let agreed = transposed.check_beside(&beside);
        agreed.map_err(|detail| FormatError::file(&path, detail))
    }

    /// The scheme that a file beside `config.json` describes.
    fn beside(files: &Files) -> Result<Option<Self>> {
        for (file, member, method) in BESIDE {
            let path: PathBuf = files.root.join(file);
            let Some(text) = read_limited(&path, CONFIG_LIMIT)? else { continue };
            let refuse = |detail: Refusal| FormatError::file(&path, detail);
            let found: Value =
                serde_json::from_slice(&text).map_err(|e| refuse(e.to_string().into()))?;
            let Some(config) = found.pointer(member).filter(|config| config.is_object()) else {
                return Err(refuse(
                    "expected an object that describes how weights are quantized".into(),
                ));
            };
            let mut config = config.clone();
            if config.get("quant_method").is_none_or(Value::is_null) {
                config["quant_method"] = json!(method);
            }
            return Self::parse(&config).map(Some).map_err(refuse);
        }
        Ok(None)
    }

    /// The scheme that tensors show which nothing describes.
    pub(super) fn shown(files: &Files) -> Option<Self> {
        let kind = Kind::Fp8(Fp8::shown(files)?);
        Some(Self { method: "fp8".to_owned(), ignore: Ignore::default(), kind })
    }

    fn parse(config: &Value) -> Result<Self, Refusal> {
        let mut ignore = Ignore::parse(config)?;
        let found = config.get("quant_method");
        let method = found.map(|method| method.as_str().unwrap_or_default().to_lowercase());
        let kind = match method.as_deref() {
            Some("fp8" | "fbgemm_fp8") => Kind::Fp8(Fp8::parse(config)?),
            Some(method) if method.starts_with("modelopt") => {
                modelopt::check(config).map(|()| Kind::ModelOpt)?
            }
            Some("quark") => quark::check(config).map(|()| Kind::Fp8(Fp8::default()))?,
            None if config.get(modelopt::ALGORITHM).is_some() => {
                modelopt::check(config).map(|()| Kind::ModelOpt)?
            }
            Some(method) if method.contains(AUTO_ROUND) => {
                Kind::Transposed(Transposed::auto_round(config)?)
            }
            Some("mxfp4") => Kind::Mxfp4,
            Some("compressed-tensors") => Kind::Compressed(Compressed::parse(config)?),
            Some("gptq") => Kind::Transposed(Transposed::gptq(config)?),
            Some("bitnet") => Kind::BitNet(BitNet::parse(config)?),
            Some("awq") => Kind::Transposed(Transposed::awq(config)?),
            None | Some("mlx") if config.get("group_size").is_some() => {
                Kind::Mlx(Mlx::parse(config)?)
            }
            _ => {
                let known = METHODS.join(", ");
                return Err(mismatch(
                    format_args!("one of {known}, or MLX's group_size and bits"),
                    shown(found),
                )
                .at("`quant_method`"));
            }
        };
        if let Kind::Mlx(mlx) = &kind {
            mlx.kept.iter().for_each(|module| ignore.add(module));
        }
        let unnamed = if matches!(kind, Kind::ModelOpt) { "modelopt" } else { "mlx" };
        let method = method.unwrap_or_else(|| unnamed.to_owned());
        Ok(Self { method, ignore, kind })
    }

    /// Takes in the tensor of which `name` is the main part, if it is one.
    pub(super) fn take(
        &self,
        grouping: &mut Grouping<'_>,
        name: &str,
        stored: &StoredTensor,
    ) -> Result<()> {
        match &self.kind {
            Kind::Fp8(fp8) => fp8.take(grouping, name, stored),
            Kind::ModelOpt => modelopt::take(grouping, name, stored),
            Kind::Mxfp4 => mxfp4::take(grouping, name, stored),
            Kind::Compressed(compressed) => compressed.take(grouping, name, stored),
            Kind::Mlx(mlx) => mlx.take(grouping, name, stored),
            Kind::Transposed(transposed) => transposed.take(grouping, name, stored),
            Kind::BitNet(bitnet) => bitnet.take(grouping, name, stored),
        }
    }

    /// The stored tensor that `name`, by its ending, belongs to.
    pub(super) fn whole_of(&self, name: &str) -> Option<String> {
        match &self.kind {
            Kind::Fp8(_) => Fp8::whole_of(name),
            Kind::ModelOpt => modelopt::whole_of(name),
            Kind::Mxfp4 => mxfp4::whole_of(name),
            Kind::Compressed(_) => compressed::whole_of(name),
            Kind::Mlx(_) => mlx::whole_of(name),
            Kind::Transposed(_) => transposed::whole_of(name),
            Kind::BitNet(_) => bitnet::whole_of(name),
        }
    }
}
