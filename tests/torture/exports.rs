//! Every exporter, over damaged bundles and under kills. Each form has every fifth seed: of 1500 cases it gets 300
//! damaged bundles, of 100 it gets 20 whose making is killed.

use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Instant;

use serde_json::{Value, json};
use shardwright_testing::models::flash_moe_checkpoint;
use shardwright_testing::{contents, copy_dir};

use super::campaign::{Attack, Campaign, binary};
use super::{Undisturbed, fingerprint, kill_and_go_on, sign};
use crate::harness::Scratch;

/// A form, and how a bundle is made that it holds.
struct Form {
    to: &'static str,
    options: &'static str,
    /// What the export makes.
    made: &'static str,
    /// Whether it holds every value of the bundle exactly: the norms of flash-moe are rounded.
    exact: bool,
}

const FORMS: [Form; 5] = [
    Form { to: "hf", options: "--bits 4", made: "made", exact: true },
    Form { to: "mlx", options: "--bits 4 --group-size 32 --for mlx", made: "made", exact: true },
    Form {
        to: "gguf",
        options: "--bits 4 --group-size 32 --set expert.*=q4_k --for gguf",
        made: "made.gguf",
        exact: true,
    },
    Form {
        to: "compressed-tensors",
        options: "--bits 4 --set attention.*=q8g32 --for compressed-tensors",
        made: "made",
        exact: true,
    },
    Form { to: "flash-moe", options: "--bits 4 --for flash-moe", made: "made", exact: false },
];

impl Form {
    fn args(&self) -> String {
        format!("export {} --to {} -o {} -q", self.to, self.to, self.made)
    }
}

/// A bundle of each form under the form's name, and what the export makes of it.
type Made = (Scratch, Vec<Undisturbed>);

fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| {
        let scratch = Scratch::with("fixture-2m");
        flash_moe_checkpoint(&scratch.path("flash-moe-ckpt"));
        let each = FORMS.iter().map(|form| {
            let checkpoint = if form.to == "flash-moe" { "flash-moe-ckpt" } else { "ckpt" };
            scratch.ok(&format!("convert {checkpoint} -o {} {}", form.to, form.options));
            let started = Instant::now();
            let mut command = Command::new(binary());
            command
                .args(form.args().split_whitespace())
                .current_dir(scratch.path(""));
            assert!(command.output().unwrap().status.success(), "{}", form.to);
            let took = started.elapsed();
            let path = scratch.path(form.made);
            let kept = scratch.path(&format!("{}.kept", form.to));
            std::fs::rename(path, &kept).unwrap();
            (fingerprint(&kept), took)
        });
        let each = each.collect();
        (scratch, each)
    })
}

/// The form whose turn it is.
fn turn(attack: &mut Attack) -> (&'static Form, &'static Undisturbed) {
    let at = (attack.seed % FORMS.len() as u64) as usize;
    attack.count(FORMS[at].to);
    (&FORMS[at], &made().1[at])
}

/// An export of a damaged bundle, half of them with every hash made right: it is refused and leaves nothing, or it is
/// the export of the whole bundle, or it holds what the bundle says now.
fn damaged(attack: &mut Attack) -> Result<(), String> {
    let (form, (expected, _)) = turn(attack);
    let whole = made().0.path(form.to);
    let bundle = attack.scratch.path(form.to);
    copy_dir(&whole, &bundle);
    let mut files: Vec<String> = contents(&whole).into_keys().collect();
    files.sort();
    let name = match attack.random.below(3) {
        0 => "manifest.json".to_owned(),
        _ => attack.random.pick(&files).clone(),
    };
    let signed = attack.random.below(2) == 0;
    if name == "manifest.json" && (signed || attack.random.below(2) == 0) {
        attack.change_json(&bundle.join(&name));
    } else {
        attack.change_bytes(&bundle.join(&name));
    }
    let same = fingerprint(&bundle) == fingerprint(&whole);
    if signed {
        sign(&bundle, &name);
    }
    attack.damage = format!("{}, {name}, signed: {signed}", form.to);
    let code = attack.run(&form.args(), &[0, 2])?.code;
    attack.count(if code == Some(0) { "exported" } else { "refused" });
    attack.nothing_left(&format!("{}.partial", form.made))?;
    if code == Some(2) {
        return attack.nothing_left(form.made);
    }
    if fingerprint(&attack.scratch.path(form.made)) == *expected {
        return Ok(());
    }
    if !signed && !same {
        return Err("a damaged bundle was exported to something else".to_owned());
    }
    attack.count("exported anew");
    if form.exact { holds_the_bundle(attack, form) } else { Ok(()) }
}

/// Values of an export of a bundle that is sound by its own hashes are those of the bundle, one by one.
fn holds_the_bundle(attack: &mut Attack, form: &Form) -> Result<(), String> {
    // What damage did to texts and settings that are copied, the two may read differently.
    let args = format!("verify {} --against {}", form.made, form.to);
    if attack.run(&format!("{args} -q"), &[0, 1, 2])?.code == Some(2) {
        attack.count("not read back");
        return Ok(());
    }
    attack.run(&format!("{args} --json"), &[0, 1])?;
    let text = std::fs::read(attack.scratch.path("stdout")).unwrap();
    let report: Value = serde_json::from_slice(&text).map_err(|e| format!("{args}: {e}"))?;
    let fidelity = &report["fidelity"];
    if fidelity["exact"] != fidelity["tensors"] || fidelity["tensors"] == json!(0) {
        return Err(format!("other values than the bundle's: {fidelity}"));
    }
    Ok(())
}

/// An export killed some times, then left alone: nothing lies under its name before it is whole, and the next one
/// makes the same bytes.
fn killed(attack: &mut Attack) -> Result<(), String> {
    let (form, undisturbed) = turn(attack);
    symlink(made().0.path(form.to), attack.scratch.path(form.to)).unwrap();
    kill_and_go_on(attack, &form.args(), form.made, undisturbed)?;
    // One that was killed when its output had its name already leaves a mark, until the next one finds it.
    attack.run(&form.args(), &[2])?;
    attack.nothing_left(&format!("{}.partial", form.made))
}

#[test]
fn exports_of_damaged_bundles_are_refused_or_right() {
    Campaign::new("damaged exports", 12).run(damaged);
}

#[test]
fn killed_exports_begin_anew_to_the_same_bytes() {
    Campaign::new("killed exports", 8).run(killed);
}
