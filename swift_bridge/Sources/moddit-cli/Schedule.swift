import ModditCore

/// `moddit-cli schedule`: the steps of a run, and the function of each.
enum Schedule {
    static let command = Command(
        name: "schedule", summary: "Print step, timestep, region, function and capacities of every step.",
        argument: nil,
        options: [.bundle, PictureOptions.steps, PictureOptions.reuse, PictureOptions.sampler] + PictureOptions.size + [
            Option(name: "batch", value: "N", help: "Rows of a call.  [default: what guidance uses]"), .json,
        ])

    static func run(_ arguments: Arguments) throws -> String {
        let manifest = try CLI.bundle(arguments).manifest
        let batch = try arguments.integer("batch", in: 1...Bounds.batch)
        let schedule = try DenoisingSchedule(
            manifest, size: CLI.size(arguments),
            batch: try batch ?? Batching(rows: 2, batches: manifest.graphs?.batches ?? [1]).batch,
            sampler: arguments.choice("sampler"),
            steps: arguments.integer("steps", in: 1...Bounds.timesteps) ?? Request.defaultSteps,
            reuse: arguments.integer("reuse", in: 1...Bounds.timesteps) ?? 1)
        return arguments.flags.contains("json") ? json(schedule).text : text(schedule)
    }

    private static func json(_ schedule: DenoisingSchedule) -> JSON {
        let steps = schedule.steps.map { step in
            JSON.object([
                "step": .integer(step.index),
                "timestep": .number(step.sampler.timestep),
                "region": .integer(step.region),
                "is_reused": .bool(step.sampler.isReused),
                "function": .string(step.function.function),
                "capacities": .array(step.function.capacities.map { .integer($0) }),
            ])
        }
        return .object([
            "sampler": .string(schedule.sampler.rawValue),
            "height": .integer(schedule.size.height),
            "width": .integer(schedule.size.width),
            "steps": .array(steps),
        ])
    }

    private static func text(_ schedule: DenoisingSchedule) -> String {
        let rows = schedule.steps.map { step in
            [
                "\(step.index)", "\(step.sampler.timestep)", "\(step.region)",
                step.sampler.isReused ? "reused" : step.function.function,
                step.sampler.isReused ? "" : step.function.capacities.map { "\($0)" }.joined(separator: " "),
            ]
        }
        return table([["step", "timestep", "region", "function", "capacities"]] + rows)
    }
}
