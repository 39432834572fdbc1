//! The header that C programmers get is the one that the Rust signatures give.

use std::path::{Path, PathBuf};

use cbindgen::{Builder, Config};

fn package(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn the_header_is_what_the_signatures_say() {
    let config = Config::from_file(package("cbindgen.toml")).unwrap();
    let builder = Builder::new()
        .with_config(config)
        .with_src(package("src/lib.rs"));
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    // Rust's heading of what a caller owes, which C's reader takes for granted.
    let made = String::from_utf8(made)
        .unwrap()
        .replace("//\n// # Safety\n", "");
    let path = package("include/shardwright.h");
    if std::env::var_os("SHARDWRIGHT_BLESS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(made == kept, "`just bless` rewrites {}", path.display());
}
