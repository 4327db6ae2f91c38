import Foundation
import ModditCore

/// `moddit-cli info`: what is in a bundle.
enum Info {
    static let command = Command(
        name: "info", summary: "Describe a bundle: components, functions, capacities, memory.", argument: nil,
        options: [
            .bundle, Option(name: "verify", value: nil, help: "Also check the hash of every file (reads all)."), .json,
        ])

    static func run(_ arguments: Arguments) throws -> String {
        let bundle = try CLI.bundle(arguments)
        if arguments.flags.contains("verify") { try bundle.verify(hashes: true) }
        return arguments.flags.contains("json") ? json(bundle.manifest).text : text(bundle.manifest)
    }

    private static func json(_ manifest: Manifest) -> JSON {
        let components = manifest.components.mapValues { component in
            JSON.object([
                "bytes": .integer(component.bytes),
                "dtype": component.dtype.map { .string($0.rawValue) } ?? .null,
                "parameters": .integer(component.parameters),
                "bits": component.bits.map { .integer($0) } ?? .null,
            ])
        }
        return .object([
            "backend": .string(manifest.backend.rawValue),
            "source": .string(manifest.provenance.source),
            "fingerprint": .string(manifest.fingerprint),
            "components": .dictionary(components),
            "architecture": .string(manifest.spec.architecture),
            "conditioning": .string(manifest.spec.conditioningKind),
            "layers": .integer(manifest.spec.layers),
            "policy": .string(manifest.tokens.name.rawValue),
            "regions": .integer(manifest.tokens.plan.regions),
            "mean_keep_ratio": .number(manifest.tokens.plan.meanKeepRatio),
            "sampler": .string(manifest.spec.scheduler.sampler.rawValue),
            "compute_units": manifest.graphs.map { .string($0.computeUnits.rawValue) } ?? .null,
            "functions": .array((manifest.graphs?.stepFunctions ?? []).map(json)),
            "weights_bytes": .integer(MemoryEstimate(manifest, reducesMemory: false).peak),
            "weights_bytes_reduced": .integer(MemoryEstimate(manifest, reducesMemory: true).peak),
        ])
    }

    private static func json(_ item: StepFunction) -> JSON {
        .object([
            "function": .string(item.function),
            "height": .integer(item.height),
            "width": .integer(item.width),
            "batch": .integer(item.batch),
            "regions": .array(item.regions.map { .integer($0) }),
            "capacities": .array(item.capacities.map { .integer($0) }),
        ])
    }

    private static func text(_ manifest: Manifest) -> String {
        let (spec, tokens) = (manifest.spec, manifest.tokens)
        let ratio = String(format: "%.3f", tokens.plan.meanKeepRatio)
        let parts = spec.components.map { name -> [String] in
            let part = manifest.components[name]
            let bits = part?.bits.map { ", \($0) bits" } ?? ""
            return [name, megabytes(part?.bytes ?? 0), "\(part?.parameters ?? 0)", (part?.dtype?.rawValue ?? "") + bits]
        }
        let functions = (manifest.graphs?.stepFunctions ?? []).map { item in
            [
                item.function, "\(item.height)x\(item.width)", "\(item.batch)",
                item.regions.map { "\($0)" }.joined(separator: " "),
                item.capacities.map { "\($0)" }.joined(separator: " "),
            ]
        }
        let (all, one) = (MemoryEstimate(manifest, reducesMemory: false), MemoryEstimate(manifest, reducesMemory: true))
        return """
            \(manifest.provenance.source.printable), for \(manifest.backend.rawValue)
            \(spec.architecture) of \(spec.layers) layers, drawing from a \(spec.conditioningKind)
            tokens \(tokens.name.rawValue), regions \(tokens.plan.regions), mean keep ratio \(ratio)
            weights in memory \(megabytes(all.peak)), with --reduce-memory \(megabytes(one.peak))

            \(table([["component", "size", "parameters", "dtype"]] + parts))

            \(table([["function", "size", "batch", "regions", "capacities"]] + functions))
            """
    }

    private static func megabytes(_ bytes: Int) -> String {
        String(format: "%.1f MB", Double(bytes) / 1e6)
    }
}
