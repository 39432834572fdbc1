fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<_> = std::env::args().collect();
    let (dir, out, recipe, method, threads, codec, resume) = (&args[1], &args[2], &args[3], &args[4], args[5].parse()?, &args[6], args.get(7).is_some());
    let t = std::time::Instant::now();
    let ckpt = shardwright_format::checkpoint::Checkpoint::open(dir.as_ref())?;
    let inv = shardwright_format::arch::Inventory::new(&ckpt, None)?;
    let mut r = shardwright_convert::Recipe::builtin(recipe)?;
    if method == "minmax" { r = r.with_method(shardwright_quant::Method::MinMax); }
    let codec = if codec == "zstd" { shardwright_format::manifest::Codec::Zstd } else { Default::default() };
    let t1 = std::time::Instant::now();
    let plan = shardwright_convert::Plan::new(&ckpt, &inv, &r, &shardwright_convert::PlanOptions { threads, codec, ..Default::default() })?;
    eprintln!("open {:?} plan {:?}", t1 - t, t1.elapsed());
    eprintln!("{:?}", plan.cost);
    eprintln!("bpw {} bytes {} rules {}", plan.summary.bits_per_weight, plan.summary.bundle_bytes, plan.rules.len());
    if out == "-" { return Ok(()); }
    let cancel = std::sync::atomic::AtomicBool::new(false);
    let t = std::time::Instant::now();
    shardwright_convert::convert(&plan, &ckpt, out.as_ref(), &shardwright_convert::ConvertOptions { threads, resume, cancel: &cancel }, &|_| {})?;
    eprintln!("convert {:?}", t.elapsed());
    let status = std::fs::read_to_string("/proc/self/status")?;
    eprintln!("{}", status.lines().find(|l| l.starts_with("VmHWM")).unwrap());
    Ok(())
}
