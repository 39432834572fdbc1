//! A directory behind a web server: it lists nothing, so files are asked for by the names that models use.

use std::collections::BTreeSet;

use serde::Deserialize;
use shardwright_format::checkpoint::{CONFIG_NAME, INDEX_NAME, SINGLE_NAME};
use shardwright_format::io::{INDEX_LIMIT, stays_inside};
use url::Url;

use crate::client::Client;
use crate::error::{RemoteError, Result};
use crate::listing::{Address, RemoteEntry};

/// Files beside the weights that checkpoints have.
const COMPANIONS: [&str; 19] = [
    CONFIG_NAME,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tiktoken.model",
    "tekken.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "preprocessor_config.json",
    "LICENSE",
    "README.md",
    INDEX_NAME,
];

/// The files that an index names.
#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// What a directory has of a model's files.
///
/// # Errors
/// A server that gives no ranges or that refuses, an index of another form.
pub fn list(client: &Client, directory: &Url, file: Option<&str>) -> Result<Vec<RemoteEntry>> {
    let mut found = Vec::new();
    if let Some(file) = file {
        let missing = |name| RemoteError::Missing { name, what: "file" };
        let model = probe(client, directory, file)?;
        found.push(model.ok_or_else(|| missing(format!("{directory}{file}")))?);
        return Ok(found);
    }
    for name in COMPANIONS {
        found.extend(probe(client, directory, name)?);
    }
    for name in weights(client, directory, &mut found)? {
        found.extend(probe(client, directory, &name)?);
    }
    Ok(found)
}

/// The names of the files with weights: those of the index if there is one.
fn weights(
    client: &Client,
    directory: &Url,
    found: &mut [RemoteEntry],
) -> Result<BTreeSet<String>> {
    let single = BTreeSet::from([SINGLE_NAME.to_owned()]);
    let Some(index) = found.iter_mut().find(|entry| entry.path == INDEX_NAME) else {
        return Ok(single);
    };
    if index.len > INDEX_LIMIT {
        let detail = format!("expected at most {INDEX_LIMIT} bytes, found {}", index.len);
        return Err(RemoteError::server(&index.name, detail));
    }
    let text = client.all(index)?;
    let read: Index = serde_json::from_slice(&text).map_err(|e| {
        RemoteError::server(&index.name, format!("expected an index of weights: {e}"))
    })?;
    index.content = Some(text);
    let names: BTreeSet<_> = read.weight_map.into_values().collect();
    match names.iter().find(|name| !stays_inside(name)) {
        Some(name) => {
            let detail =
                format!("{INDEX_NAME} names `{name}`: expected a name that stays in the directory");
            Err(RemoteError::server(directory.as_str(), detail))
        }
        None => Ok(names),
    }
}

fn probe(client: &Client, directory: &Url, path: &str) -> Result<Option<RemoteEntry>> {
    let url = join(directory, path)?;
    let name = url.to_string();
    let Some((len, revision)) = client.probe(&name, &url)? else { return Ok(None) };
    let (path, address) = (path.to_owned(), Address::Web { url });
    Ok(Some(RemoteEntry { path, len, revision, name, address, content: None }))
}

fn join(directory: &Url, path: &str) -> Result<Url> {
    let mut url = directory.clone();
    url.path_segments_mut()
        .map_err(|()| {
            RemoteError::server(directory.as_str(), "expected the address of a directory")
        })?
        .pop_if_empty()
        .extend(path.split('/'));
    Ok(url)
}
