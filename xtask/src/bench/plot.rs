//! Two kinds of picture, as SVG.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

/// The name of a bar, its length, and the ends of its spread.
pub(super) type Bar = (String, f64, f64, f64);

const WIDTH: u32 = 800;
const COLOURS: [RGBColor; 8] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 95, 30),
    RGBColor(44, 140, 60),
    RGBColor(148, 103, 189),
    RGBColor(120, 90, 60),
    RGBColor(200, 60, 120),
    RGBColor(110, 110, 110),
    RGBColor(20, 160, 170),
];
const FONT: (&str, i32) = ("sans-serif", 14);

/// Bars that lie one below another, with the median written beside each and its spread as a line.
pub(super) fn bars(path: &Path, title: &str, unit: &str, bars: &[Bar]) -> anyhow::Result<()> {
    let height = 90 + 30 * u32::try_from(bars.len())?;
    let longest = bars.iter().map(|bar| bar.3.max(bar.1)).fold(0.0, f64::max);
    let last = bars
        .len()
        .checked_sub(1)
        .with_context(|| format!("nothing to draw in {}", path.display()))?;
    let names: Vec<&str> = bars.iter().rev().map(|bar| bar.0.as_str()).collect();
    draw(path, height, |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(250)
            // Room for the figure beside the longest.
            .build_cartesian_2d(0.0..longest * 1.15, (0..last).into_segmented())?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .max_light_lines(1)
            .label_style(FONT)
            .x_desc(format!("{unit}: the median, and all from least to most"))
            .x_label_formatter(&|x| figure(*x))
            .y_labels(names.len())
            .y_label_formatter(&|place| match place {
                SegmentValue::CenterOf(place) => {
                    names.get(*place).copied().unwrap_or("").to_owned()
                }
                _ => String::new(),
            })
            .draw()?;
        for (place, (_, median, low, high)) in bars.iter().rev().enumerate() {
            let (bottom, top) = (SegmentValue::Exact(place), SegmentValue::Exact(place + 1));
            let mut bar =
                Rectangle::new([(0.0, bottom), (*median, top)], COLOURS[0].mix(0.6).filled());
            bar.set_margin(5, 5, 0, 0);
            chart.draw_series([bar])?;
            let middle = SegmentValue::CenterOf(place);
            let spread = [(*low, middle.clone()), (*high, middle.clone())];
            chart.draw_series([PathElement::new(spread, BLACK.stroke_width(2))])?;
            let beside = EmptyElement::at((high.max(*median), middle))
                + Text::new(figure(*median), (6, -6), FONT);
            chart.draw_series([beside])?;
        }
        Ok(())
    })
}

/// Curves. Where x spans more than a factor of 50 its axis is logarithmic.
pub(super) fn lines(
    path: &Path,
    title: &str,
    x_label: &str,
    y_label: &str,
    curves: &[(String, Vec<(f64, f64)>)],
) -> anyhow::Result<()> {
    let points = || curves.iter().flat_map(|(_, points)| points);
    let least = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let most = points().map(|point| point.0).fold(f64::NEG_INFINITY, f64::max);
    ensure!(least.is_finite(), "nothing to draw in {}", path.display());
    let labels = (x_label, y_label);
    draw(path, 480, |area| {
        if least > 0.0 && most / least > 50.0 {
            curves_on(area, title, labels, (least..most).log_scale(), curves)
        } else {
            curves_on(area, title, labels, least..most, curves)
        }
    })
}

fn curves_on<'a, X>(
    area: &Area<'a>,
    title: &str,
    (x_label, y_label): (&str, &str),
    x: X,
    curves: &[(String, Vec<(f64, f64)>)],
) -> Outcome<'a>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
{
    let points = curves.iter().flat_map(|(_, points)| points);
    let highest = points.map(|point| point.1).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(15)
        .x_label_area_size(45)
        .y_label_area_size(70)
        .build_cartesian_2d(x, 0.0..highest * 1.1)?;
    chart
        .configure_mesh()
        .max_light_lines(1)
        .label_style(FONT)
        .x_desc(x_label)
        .y_desc(y_label)
        .x_label_formatter(&|x| figure(*x))
        .y_label_formatter(&|y| figure(*y))
        .draw()?;
    for ((name, points), colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(name)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .label_font(FONT)
        .draw()
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Outcome<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn draw(
    path: &Path,
    height: u32,
    what: impl for<'a> FnOnce(&Area<'a>) -> Outcome<'a>,
) -> anyhow::Result<()> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        let failed = || format!("{} cannot be drawn", path.display());
        area.fill(&WHITE).with_context(failed)?;
        what(&area).with_context(failed)?;
        area.present().with_context(failed)?;
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(path, text)?;
    println!("drawn: {}", path.strip_prefix(crate::workspace()).unwrap_or(path).display());
    Ok(())
}

/// With as many digits as a reader wants.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
