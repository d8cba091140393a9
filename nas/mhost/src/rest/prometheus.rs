//! Counters as Prometheus text (exposition format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write;

use cairn_cf::Metric;

/// Prefix of every name.
const PREFIX: &str = "cairn_";

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Labels as `name="value"` joined by commas.
pub(super) fn labels(metric: &Metric) -> String {
    let parts: Vec<String> =
        metric.labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escape(v))).collect();
    parts.join(",")
}

/// Name of the family that a metric belongs to, and its type.
fn family(name: &str, histograms: &BTreeMap<&str, ()>) -> (String, &'static str) {
    for suffix in ["_bucket", "_sum", "_count"] {
        if let Some(base) = name.strip_suffix(suffix)
            && histograms.contains_key(base)
        {
            return (base.to_owned(), "histogram");
        }
    }
    (name.to_owned(), if name.ends_with("_total") { "counter" } else { "gauge" })
}

/// The whole page: families by name, in each the metrics in the order they came.
pub(super) fn text(metrics: &[Metric]) -> String {
    let histograms: BTreeMap<&str, ()> =
        metrics.iter().filter_map(|m| Some((m.name.strip_suffix("_bucket")?, ()))).collect();
    let mut families: BTreeMap<(String, &'static str), Vec<&Metric>> = BTreeMap::new();
    for metric in metrics {
        families.entry(family(&metric.name, &histograms)).or_default().push(metric);
    }
    let mut out = String::new();
    for ((name, kind), members) in families {
        // Writing to a string cannot fail.
        writeln!(out, "# TYPE {PREFIX}{name} {kind}").unwrap_or_default();
        for metric in members {
            let labels = labels(metric);
            let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            writeln!(out, "{PREFIX}{}{braces} {}", metric.name, metric.value).unwrap_or_default();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(name: &str, labels: &[(&str, &str)], value: u64) -> Metric {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Metric { name: name.to_owned(), labels, value }
    }

    #[test]
    fn page_groups_families_and_escapes_labels() {
        let metrics = [
            metric("b_total", &[("disk", "a\"b\\c\n")], 2),
            metric("op_seconds_bucket", &[("le", "1")], 3),
            metric("a_bytes", &[], 1),
            metric("op_seconds_count", &[], 3),
            metric("b_total", &[("disk", "d")], 4),
        ];
        let expected = "\
# TYPE cairn_a_bytes gauge
cairn_a_bytes 1
# TYPE cairn_b_total counter
cairn_b_total{disk=\"a\\\"b\\\\c\\n\"} 2
cairn_b_total{disk=\"d\"} 4
# TYPE cairn_op_seconds histogram
cairn_op_seconds_bucket{le=\"1\"} 3
cairn_op_seconds_count 3
";
        assert_eq!(text(&metrics), expected);
    }
}
