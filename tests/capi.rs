//! The C library, as a C programmer meets it: programs that the system's compiler makes of the header and the archive.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use shardwright_format::Bundle;
use shardwright_quant::{Activations, Backend, Encoding, Matrix, Outputs, matmul};
use shardwright_testing::{RawTensors, copy_dir, root};

use crate::harness::Scratch;

/// Further options of the compiler: `.ci/run` asks for sanitizers where there are some.
const FLAGS: &str = "SHARDWRIGHT_CFLAGS";

/// The archive, which Cargo makes beside the tests since they depend on its crate.
fn archive() -> PathBuf {
    assert_eq!(shardwright_capi::sw_abi(), shardwright_capi::ABI);
    let tests = std::env::current_exe().unwrap();
    tests.with_file_name("libshardwright_capi.a")
}

/// A program of the library's crate; none where nothing compiles C, which `.ci/run` names.
fn compiled(scratch: &Scratch, source: &str) -> Option<PathBuf> {
    let program = scratch.path("program");
    let crate_dir = root().join("crates/capi");
    let flags = std::env::var(FLAGS).unwrap_or_default();
    let mut command = Command::new("cc");
    command
        .args(["-std=c11", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-pthread"])
        .args(flags.split_whitespace())
        .arg("-I")
        .arg(crate_dir.join("include"))
        .arg(crate_dir.join(source))
        .arg(archive())
        .args(["-ldl", "-lm", "-o"])
        .arg(&program);
    let Ok(made) = command.output() else {
        eprintln!("SKIPPED: {source}: there is no cc");
        return None;
    };
    assert!(made.status.success(), "{source}: {}", String::from_utf8_lossy(&made.stderr));
    Some(program)
}

fn run(program: &Path, args: &[&str], dir: &Path) -> Output {
    let mut command = Command::new(program);
    command.args(args).current_dir(dir).output().unwrap()
}

/// Text after the last `start`, up to the end of the line.
fn after<'a>(text: &'a str, start: &str) -> &'a str {
    let at = text
        .rfind(start)
        .unwrap_or_else(|| panic!("no {start:?} in\n{text}"));
    text[at + start.len()..].lines().next().unwrap()
}

fn converted(options: &str) -> Scratch {
    let scratch = Scratch::with("fixture-2m");
    scratch.ok(&format!("convert ckpt -o out {options}"));
    scratch
}

/// Tensors, places and text of the commands, values of an export, a product of `quant`.
#[test]
fn the_c_example_says_what_the_commands_say() {
    let scratch = converted("--bits 4 --group-size 32 --align 4KiB");
    let Some(program) = compiled(&scratch, "examples/read.c") else { return };
    let ran = run(&program, &["out", "Once"], &scratch.path(""));
    let said = String::from_utf8(ran.stdout).unwrap();
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));

    let text = scratch.json("run out --prompt Once -n 12")["text"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(said.ends_with(&format!("{text}\n")), "{said}");

    let bundle = Bundle::open(&scratch.path("out")).unwrap();
    let manifest = bundle.manifest();
    for (unit, count, entry) in manifest.tensors() {
        let layer = unit.layer().map_or(-1, i64::from);
        let line = format!(
            "{}, layer {layer}, x{count}: {} x {}, {}\n",
            entry.role,
            entry.rows,
            entry.cols,
            entry.encoding.label()
        );
        assert!(said.contains(&line), "no {line}in\n{said}");
    }
    // The last tensor of codes is an expert's, and of its experts the first one is shown.
    let experts = manifest.experts.last().unwrap();
    let entry = experts.tensors.last().unwrap();
    let first = experts.numbers().next().unwrap();
    let extent = experts.extent(first).unwrap();
    assert_eq!(
        after(&said, &format!("{} of expert {first}: ", entry.role)),
        format!("out/{}", experts.file)
    );
    assert_eq!(after(&said, "unit at "), format!("{}, {} bytes", extent.offset, extent.len));
    let parts = entry.encoding.parts(entry.rows, entry.cols).unwrap();
    let mut at = extent.offset + entry.offset;
    for (name, len) in
        [("weight", parts.weight), ("scales", parts.scales), ("biases", parts.biases)]
    {
        assert_eq!(after(&said, &format!("{name} at ")), format!("{at}, {len} bytes"));
        at += len;
    }
    let row = exported(&scratch, &entry.source.of_expert(0).tensor, entry.cols as usize);
    let shown: Vec<_> = row.iter().take(8).map(|value| value.to_bits()).collect();
    assert_eq!(floats(after(&said, "last row: ")), shown);
    let bytes = std::fs::read(scratch.path("out").join(&experts.file)).unwrap();
    let bytes = &bytes[entry.offset as usize..][..parts.total() as usize];
    let square = square(entry.encoding, [entry.rows as usize, entry.cols as usize], bytes, &row);
    assert_eq!(floats(after(&said, "its square: ")), [square.to_bits()]);
}

/// Nine digits are enough for any f32.
fn floats(text: &str) -> Vec<u32> {
    let value = |text: &str| text.parse::<f32>().unwrap().to_bits();
    text.split_whitespace().map(value).collect()
}

/// The last row of a tensor of the checkpoint that `export --to hf` writes.
fn exported(scratch: &Scratch, tensor: &str, cols: usize) -> Vec<f32> {
    scratch.ok("export out --to hf -o hf");
    let files = std::fs::read_dir(scratch.path("hf"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files = files.filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
    let holds =
        |path: PathBuf| Some(RawTensors::read(&path)).filter(|raw| raw.header.contains_key(tensor));
    let file = files.find_map(holds).unwrap();
    let bytes = &file.data[file.range(tensor)];
    let values = bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    let values: Vec<_> = values.collect();
    values[values.len() - cols..].to_vec()
}

/// The last output of a matrix for its own last row.
fn square(encoding: Encoding, [rows, cols]: [usize; 2], bytes: &[u8], row: &[f32]) -> f32 {
    let matrix = Matrix::new(encoding, rows, cols, bytes).unwrap();
    let mut input = Activations::new();
    input.set(Backend::Scalar, row, cols);
    let mut out = [0.0];
    matmul(&matrix, &input, rows - 1..rows, Outputs::new(&mut out, 1));
    out[0]
}

/// Bad paths, a damaged bundle, null pointers, numbers that nothing has, short buffers, callbacks that call back,
/// two threads on one handle. Encodings whose rows can be read alone, and those whose rows cannot.
#[test]
fn hostile_calls_come_back_with_a_code() {
    for options in ["--bits 4 --group-size 32", "--bits 4 --group-size 32 --set expert.*=t3s10"] {
        let scratch = converted(&format!("{options} --align 4KiB"));
        let Some(program) = compiled(&scratch, "tests/hostile.c") else { return };
        copy_dir(&scratch.path("out"), &scratch.path("damaged"));
        scratch.edit_bytes("damaged/dense-000.bin", |bytes| bytes[100] ^= 1);
        let ran = run(&program, &["out", "damaged"], &scratch.path(""));
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
        assert_eq!(said, "all refused, all well\n");
    }
}

/// What ENGINES.md shows is what is compiled here.
#[test]
fn the_example_in_the_documentation_is_the_one_that_runs() {
    let example = std::fs::read_to_string(root().join("crates/capi/examples/read.c")).unwrap();
    let text = std::fs::read_to_string(root().join("docs/ENGINES.md")).unwrap();
    let (_, main) = example.split_once("int main").unwrap();
    assert!(text.contains(&format!("int main{main}")), "docs/ENGINES.md shows another main");
}
