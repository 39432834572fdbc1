use super::*;
use crate::check::divergence::{LayerDrift, NoiseFloor};
use crate::report::TextRecord;
use crate::report::thresholds::Thresholds;

fn report(name: &str, bits: f64, kld_mean: f64) -> Named {
    let layer = |layer, rmse| LayerDrift { layer, rmse, ..LayerDrift::default() };
    let divergence = Divergence {
        tokens: 4080,
        windows: 16,
        window: 256,
        kld_mean,
        kld_mean_se: 0.001,
        same_top: 0.9,
        same_top_se: 0.004,
        noise_floor: Some(NoiseFloor { kld_mean: 1e-5, ..NoiseFloor::default() }),
        layers: vec![layer(None, 0.01), layer(Some(0), kld_mean)],
        ..Divergence::default()
    };
    let text = TextRecord {
        name: "eval.txt".to_owned(),
        blake3: Hash([1; 32]),
        bytes: 10,
        tokens: 4096,
        cache: None,
    };
    let report = Report {
        bits_per_weight: Some(bits),
        divergence: Some(divergence),
        text: Some(text),
        ..Report::new(format!("{name}.bundle"), Thresholds::default())
    };
    Named { name: name.to_owned(), report }
}

#[test]
fn differences_are_told_by_their_errors() {
    let reports = [report("a", 4.0, 0.01), report("b", 3.0, 0.05), report("c", 4.1, 0.0101)];
    let comparison = ReportComparison::new(&reports, Vec::new());
    let [b, c] = &comparison.differences[..] else { panic!("{:?}", comparison.differences) };
    assert!((b.kld_mean.difference - 0.04).abs() < 1e-12 && b.kld_mean.tells());
    assert!((b.kld_mean.se - 0.001 * 2f64.sqrt()).abs() < 1e-15);
    assert_eq!((b.kld_mean.word(-1.0), c.kld_mean.word(-1.0)), ("worse", "not told from chance"));
    assert!((b.kld_ratio.unwrap() - 5.0).abs() < 1e-12);
    assert_eq!(b.ln_ppl_ratio.sigmas, None);
    assert!(!b.ln_ppl_ratio.tells());
    assert_eq!(comparison.drift[1].rmse, [Some(0.01), Some(0.05), Some(0.0101)]);
    assert!(comparison.warnings.is_empty(), "{:?}", comparison.warnings);
}

#[test]
fn what_is_not_comparable_is_said() {
    let mut reports = [report("a", 4.0, 0.01), report("b", 3.0, 0.05), report("c", 3.0, 0.05)];
    reports[1].report.text.as_mut().unwrap().blake3 = Hash([2; 32]);
    reports[1].report.divergence.as_mut().unwrap().windows = 8;
    reports[2].report.divergence = None;
    let comparison = ReportComparison::new(&reports, Vec::new());
    assert_eq!(
        comparison.warnings,
        [
            "c: has no divergence: it was verified without an original or without a text",
            "b and a: not comparable: different texts",
            "b and a: not comparable: different windows",
        ]
    );
    assert_eq!((comparison.differences.len(), comparison.drift[0].rmse[2]), (1, None));
    let text = comparison.to_string();
    assert!(text.contains("warning: b and a: not comparable: different texts"), "{text}");
    comparison.to_html();
}

#[test]
fn the_page_has_the_curve_and_escapes_names() {
    let reports = [report("<b>", 4.0, 0.01), report("b", 3.0, 0.05)];
    let beside = Point {
        name: "peer & co".to_owned(),
        bits_per_weight: 3.5,
        kld_mean: 0.03,
        kld_mean_se: None,
        weight_bytes: None,
    };
    let page = ReportComparison::new(&reports, vec![beside]).to_html();
    assert!(page.contains("<svg") && page.contains("peer &amp; co") && !page.contains("<b>:"));
    assert!(page.contains("&lt;b&gt;") && page.contains("worse"));
    for alien in ["http:", "https:", "<script", "src=", "url(", "NaN"] {
        assert!(!page.contains(alien), "{alien}");
    }
}

#[test]
fn files_are_called_by_what_tells_them_apart() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["q3.json", "q2.json", "sub/q3.json"].map(|name| dir.path().join(name));
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    let json = serde_json::to_string(&report("a", 4.0, 0.01).report).unwrap();
    for path in &paths {
        std::fs::write(path, &json).unwrap();
    }
    let named = Named::read(&paths).unwrap();
    assert_eq!(named[1].name, "q2");
    assert!(named[2].name.ends_with("sub/q3.json") && named[0].name.ends_with("/q3.json"));
    std::fs::write(&paths[1], "{\"kind\": 1}").unwrap();
    let error = Named::read(&paths).unwrap_err().to_string();
    assert!(
        error.contains(
            "q2.json: expected a JSON report of verify, found other JSON or none: missing field `verdict`"
        ),
        "{error}"
    );
}
