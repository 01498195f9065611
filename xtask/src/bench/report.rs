//! `cargo xtask bench-report`: a record as a page in Markdown, with its plots beside it.
//!
//! `series` and `roofline` say what is to be shown, `plot` draws it, `page` writes it down.

mod page;
mod plot;
mod roofline;
mod series;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::record::Record;
use crate::root;
use page::Report;

/// The arguments of `cargo xtask bench-report`.
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// The records [default: all of benches/record]
    #[arg(value_name = "RECORD")]
    records: Vec<PathBuf>,
}

/// Writes a page for each record beside it, `NAME.md` for `NAME.csv`, and its plots to the folder `NAME`.
///
/// # Errors
/// If there is no record, one is malformed, or something can't be written.
pub fn report(args: &ReportArgs, out: &mut dyn Write) -> Result<()> {
    let records = if args.records.is_empty() {
        kept(&root().join("benches/record"))?
    } else {
        args.records.clone()
    };
    ensure!(!records.is_empty(), "there is no record yet; `cargo xtask bench-record` makes one");
    for path in records {
        let page = write_report(&path)?;
        writeln!(out, "{}", page.display())?;
    }
    Ok(())
}

/// The records of a folder, by name.
fn kept(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "csv"));
    paths.sort();
    Ok(paths)
}

/// Writes the page of the record at `path` and its plots; returns where the page is.
fn write_report(path: &Path) -> Result<PathBuf> {
    let record = Record::read(path)?;
    let folder = path.with_extension("");
    let name = folder.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{} has no name in UTF-8", path.display()))?;
    let page = path.with_extension("md");
    ensure!(page != path && folder != path, "{} is not called NAME.csv", path.display());
    let report = Report::of(&record, name)
        .with_context(|| format!("cannot make a page of {}", path.display()))?;
    fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let plots = report.plots.iter().map(|(file, svg)| (folder.join(file), svg));
    for (path, text) in plots.chain([(page.clone(), &report.page)]) {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of a machine with 10 GB/s, 2 GFLOP/s without and 40 GFLOP/s with AVX2.
    pub(super) const RECORD: &str = "\
        # date: 2026-01-31\n# cpu: Some CPU | 3 GHz\n# cpus: 2\n# kernels: avx2\n# commit: abc+\n# command: cargo bench\n\
        # read bytes a second: 10000000000\n# scalar operations a second: 2000000000\n\
        # avx2 operations a second: 40000000000\nname,median_ns,lower_ns,upper_ns,elements,bytes\n\
        checkpoint/header/1,1000,990,1010,1,\n\
        checkpoint/header/100,10000,9900,10100,100,\n\
        checkpoint/header/10000,1000000,990000,1010000,10000,\n\
        chat_template/render/1 messages,1000,990,1010,,200\n\
        model/decode/f32/context 128,2000000,1900000,2100000,16,\n\
        model/decode/f32/context 512,4000000,3900000,4100000,16,\n\
        model/prefill of 128/f32/batch 1,1280000,1270000,1290000,128,\n\
        qkv_proj/1 tokens/avx2,1000,990,1010,8000,8000\n\
        qkv_proj/1 tokens/candle,2000,1990,2010,8000,8000\n\
        qkv_proj/1 tokens/scalar,8000,7990,8010,8000,8000\n\
        qkv_proj/16 tokens/avx2,5000,4990,5010,128000,9000\n";

    #[test]
    fn a_page_stands_beside_its_record() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("2026-01-31-cpu.csv");
        fs::write(&record, RECORD).unwrap();
        fs::write(dir.path().join("notes.txt"), "").unwrap();
        let records = kept(dir.path()).unwrap();
        assert_eq!(records, [record]);
        let mut out = Vec::new();
        report(&ReportArgs { records }, &mut out).unwrap();
        let page = dir.path().join("2026-01-31-cpu.md");
        assert_eq!(String::from_utf8(out).unwrap(), format!("{}\n", page.display()));
        let text = fs::read_to_string(page).unwrap();
        let images: Vec<&str> =
            text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()).collect();
        assert_eq!(
            images,
            ["roofline-scalar", "roofline-avx2", "prefill-of-128", "decode", "growth"]
                .map(|name| format!("2026-01-31-cpu/{name}.svg"))
        );
        for image in images {
            let svg = fs::read_to_string(dir.path().join(image)).unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        }
    }

    #[test]
    fn what_is_no_record_gives_no_page() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, text: &str, expected: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            let args = ReportArgs { records: vec![path.clone()] };
            let error = format!("{:#}", report(&args, &mut Vec::new()).unwrap_err());
            assert_eq!(error, expected.replace("PATH", &path.display().to_string()));
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
            fs::remove_file(path).unwrap();
        };
        check("a.csv", "a\n", "PATH is not a record: `date` is not told");
        let unknown = RECORD.replace("# cpus", "# wind");
        check("a.csv", &unknown, "PATH is not a record: `wind` is nothing that a record tells");
        check("a", RECORD, "PATH is not called NAME.csv");
        check("a.md", RECORD, "PATH is not called NAME.csv");
        let head = RECORD.split_inclusive("bytes\n").next().unwrap();
        check("a.csv", head, "cannot make a page of PATH: it has no rows");
    }
}
